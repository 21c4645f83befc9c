"""A trial: run by number, and by any scheduler."""

import os

import pytest

from tests.support import planned_sweeps
from tests.support import sweep_commands
from tftrain import errors
from tftrain.distribute import cluster_resolver
from tftrain.sweep import results as results_lib
from tftrain.sweep import trial as trial_lib


def test_a_trial_by_number_runs_once(tmp_path, capsys, monkeypatch):
  plan = planned_sweeps.planned(tmp_path, planned_sweeps.GRID)
  # Who runs it may be a task of a scheduler that tells of others.
  monkeypatch.setenv('TF_CONFIG', '{"cluster": {"worker": ["a:1", "b:1"]}}')
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'a,b')

  def work(trial):
    assert cluster_resolver.resolve(os.environ) is None
    planned_sweeps.write_metrics(trial.directory, [(1, 0.5)])
    with pytest.raises(errors.RunDirectoryError, match='is run by pid'):
      trial_lib.run(plan.sweep_dir, 1, work)
    return 0

  assert trial_lib.run(plan.sweep_dir, 1, work) == 0
  assert trial_lib.run(plan.sweep_dir, 1, work) == 0
  assert capsys.readouterr().out == 'Trial 1 is over; nothing to do.\n'
  with pytest.raises(errors.ConfigError, match='has trials 0 to 1, and no'):
    trial_lib.run(plan.sweep_dir, 2, work)
  assert trial_lib.run(plan.sweep_dir, 0, lambda trial: 143) == 143
  assert sweep_commands.states(plan.sweep_dir) == ['pending', 'done']


@pytest.mark.slow
def test_any_scheduler_may_run_a_real_trial(commands, tmp_path):
  plan = planned_sweeps.planned(
    tmp_path,
    f"""{planned_sweeps.DIGITS}
    digits.make_task.filters = 4
    Sweep.space = {{'LEARNING_RATE': [0.001, 1e30]}}
    Sweep.seeds = [7]
    Sweep.prune = @Median()
    Median.min_steps = 5
    """,
  )
  command = (f'--sweep_dir={plan.sweep_dir}', '--trial_index=0')
  assert commands.run(*command).code == 0
  done = commands.run(*command)
  assert done.code == 0 and 'Trial 0 is over' in done.stdout
  bad = commands.run(f'--sweep_dir={plan.sweep_dir}', '--trial_index=1')
  assert bad.code == 1 and 'loss' in bad.error
  first, second = results_lib.read(plan)
  assert (first.status, second.status) == ('done', 'diverged')
  assert [step for step, _ in first.history] == [10, 20]
  config = (first.directory / 'config.gin').read_text()
  assert 'LEARNING_RATE = 0.001' in config and 'Experiment.seed = 7' in config
  assert 'Sweep' not in config

"""The Optuna sampler: draws once for all seeds, and learns."""

import importlib.util
import math

import pytest

from tests.support import planned_sweeps
from tests.support import sweep_commands
from tftrain import errors
from tftrain.sweep import _optuna_sampler
from tftrain.sweep import trial as trial_lib


def test_a_sampler_draws_once_for_all_seeds_and_learns(tmp_path):
  pytest.importorskip('optuna')
  plan = planned_sweeps.planned(
    tmp_path,
    """
    Sweep.space = {'LR': 'log_uniform(1e-3, 1)', 'M': [@Adam(), 'x']}
    Sweep.search = 'tpe'
    Sweep.num_trials = 12
    Sweep.seeds = [0, 1]
    """,
  )
  assert plan.trials[0].bindings is None
  drawn = []

  def work(trial):
    drawn.append(trial.bindings)
    rate = float(trial.bindings[0].removeprefix('LR = '))
    planned_sweeps.write_metrics(
      trial.directory, [(1, -abs(math.log(rate / 0.01)))]
    )
    return 0

  for trial in plan.trials:
    trial_lib.run(plan.sweep_dir, trial.index, work)
  assert sweep_commands.states(plan.sweep_dir) == ['done'] * 24
  for first, second in zip(drawn[::2], drawn[1::2], strict=True):
    assert first[:2] == second[:2]
    assert [first[2], second[2]] == [f'Experiment.seed = {s}' for s in (0, 1)]
  assert len({tuple(lines[:2]) for lines in drawn}) == 12
  assert {lines[1] for lines in drawn} == {'M = @Adam()', "M = 'x'"}
  told = (plan.sweep_dir / 'optuna.journal').read_text()
  assert told.count('"values"') == 11  # of all but the last
  assert told.count('"op_code":4') == 12  # and none was asked for twice


def test_a_sampler_that_is_not_there_is_told_before(monkeypatch):
  pytest.importorskip('optuna')
  _optuna_sampler.check('tpe')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    errors.ConfigError, match="'gp' needs torch, which is not"
  ):
    _optuna_sampler.check('gp')

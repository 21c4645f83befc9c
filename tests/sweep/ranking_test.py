"""Ranking: the best mean over the seeds."""

from tests.support import planned_sweeps
from tftrain.sweep import results as results_lib
from tftrain.sweep import trial as trial_lib


def test_the_best_has_the_best_mean_over_its_seeds(tmp_path):
  plan = planned_sweeps.planned(
    tmp_path, f'{planned_sweeps.GRID}Sweep.seeds = [0, 1]'
  )
  # The best single value is that of the second; the best mean the first's.
  for trial, value in zip(plan.trials, (0.8, 0.7, 0.9, 0.1), strict=True):

    def work(running, value=value):
      planned_sweeps.write_metrics(running.directory, [(1, value)])
      return 0

    trial_lib.run(plan.sweep_dir, trial.index, work)
  best = results_lib.best(results_lib.read(plan), 'max')
  assert best.trial.point == 0
  assert results_lib.best(results_lib.read(plan), 'min').trial.point == 1

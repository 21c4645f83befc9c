"""Pruners: ASHA and the median rule, among peers at equal steps."""

import json
import math

import pytest

from tests.support import planned_sweeps
from tests.support import sweep_commands
from tftrain.report import report as report_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import results as results_lib
from tftrain.sweep import trial as trial_lib


@pytest.mark.parametrize(
  ('own', 'others', 'kept'),
  [
    (0.5, [], True),  # nobody to compare with
    (0.5, [0.4], True),
    (0.5, [0.6], False),  # the best third of two is one
    (0.5, [0.6, 0.4, 0.3], True),  # of four it is two
    (0.5, [0.6, 0.7, 0.3], False),
    (0.5, [0.5, 0.5, 0.5, 0.5], True),  # nobody is better
    (-math.inf, [0.1], False),
  ],
)
def test_asha_keeps_the_best_third(own, others, kept):
  assert pruner_lib.Asha(10).keeps([own], others) is kept


def test_asha_compares_at_its_rungs_only():
  asha = pruner_lib.Asha(min_steps=10, factor=3)
  due = [s for s in range(5, 300, 5) if asha.is_due(s - 5, s)]
  assert due == [10, 30, 90, 270]
  assert asha.is_due(24, 36)  # the first value after 30


@pytest.mark.parametrize(
  ('own', 'others', 'kept'),
  [
    ([0.1], [0.5, 0.6], True),  # too few to tell
    ([0.1], [0.4, 0.5, 0.6], False),
    ([0.5, 0.1], [0.4, 0.5, 0.6], True),  # its best counts, not a dip
  ],
)
def test_median_prunes_below_the_median(own, others, kept):
  assert pruner_lib.Median(10).keeps(own, others) is kept


def _report(step, value):
  return report_lib.Report(
    source='eval/test',
    step=step,
    previous_step=step - 10,
    start_step=0,
    last_step=100,
    scalars={'accuracy': value},
  )


def test_a_trial_is_pruned_by_peers_at_equal_steps_and_stays_so(tmp_path):
  plan = planned_sweeps.planned(
    tmp_path,
    """
    Sweep.space = {'LR': [1, 2, 3]}
    Sweep.prune = @Asha()
    Asha.min_steps = 20
    """,
  )
  mine, peer, far = plan.trials
  for trial in plan.trials:
    plan.directory(trial).mkdir()
  watch = trial_lib.Watch(plan, mine, lambda: None)
  planned_sweeps.write_metrics(plan.directory(peer), [(10, 0.9), (20, 0.9)])
  planned_sweeps.write_metrics(plan.directory(far), [(10, 0.95), (30, 0.95)])

  planned_sweeps.write_metrics(plan.directory(mine), [(10, 0.1)])
  assert watch(_report(10, 0.1)) is None  # before min_steps
  planned_sweeps.write_metrics(plan.directory(mine), [(20, 0.1)])
  assert watch(_report(20, 0.1)) is report_lib.Signal.STOP
  assert json.loads(
    (plan.directory(mine) / results_lib.PRUNED).read_text()
  ) == {
    'step': 20,
    'better': 1,
    'compared': 2,
  }  # `far` has no value at 20
  (plan.directory(peer) / 'metrics.jsonl').unlink()
  assert watch(_report(20, 0.1)) is report_lib.Signal.STOP  # as it was decided
  assert watch(_report(10, 0.1)) is None  # not before, when it is resumed


def test_repeats_are_compared_with_those_of_the_same_seed(tmp_path):
  plan = planned_sweeps.planned(
    tmp_path,
    f"""
    {planned_sweeps.GRID}
    Sweep.seeds = [0, 1]
    Sweep.prune = @Asha()
    Asha.min_steps = 20
    """,
  )
  for trial, value in zip(plan.trials, (0.1, 0.9, 0.05, 0.9), strict=True):
    plan.directory(trial).mkdir()
    planned_sweeps.write_metrics(plan.directory(trial), [(20, value)])
  first, second, third, _ = plan.trials
  assert trial_lib.Watch(plan, first, lambda: None)(_report(20, 0.1)) is None
  assert trial_lib.Watch(plan, second, lambda: None)(_report(20, 0.9)) is None
  assert (
    trial_lib.Watch(plan, third, lambda: None)(_report(20, 0.05)) is not None
  )


def test_pruned_trials_end_early_and_are_no_failures(tmp_path):
  sweep_dir = sweep_commands.plan(
    tmp_path,
    """
    STEPS = 9
    Sweep.space = {'LR': [0.3, 0.2, 0.1]}
    Sweep.prune = @Asha()
    Asha.min_steps = 3
    """,
  )
  code, out, _ = sweep_commands.run(sweep_dir)
  assert code == 0 and '1 done, 2 pruned, best' in out
  found = results_lib.read(plan_lib.read(sweep_dir))
  assert [result.step for result in found] == [9, 3, 3]

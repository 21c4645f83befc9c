"""Ranking of the assignments of a sweep, averaged over seeds."""

from collections.abc import Sequence
import dataclasses
import math
import statistics

from tftrain.platform import literals
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import results as results_lib

# Assignments are ranked by status first, in this order.
_ORDER = ('done', 'pruned', 'running', 'pending', 'diverged', 'failed')


@dataclasses.dataclass(frozen=True)
class Row:
  """An assignment and its results.

  Attributes:
    values: Name -> value, as bound.
    repeats: Trials of the assignment, one for each seed.
    status: The worst status of the repeats.
    mean: Mean of the metric over the repeats; None if any has no value.
    deviation: Sample standard deviation over the repeats; 0 for one.
  """

  values: dict[str, literals.Value]
  repeats: Sequence[results_lib.Result]
  status: str
  mean: float | None
  deviation: float

  @property
  def seconds(self) -> float:
    return sum(result.seconds for result in self.repeats)

  @property
  def score(self) -> str:
    """The mean as text, with the deviation of several repeats."""
    if self.mean is None:
      return ''
    spread = f' ± {self.deviation:.2g}' if len(self.repeats) > 1 else ''
    return f'{self.mean:.6g}{spread}'


def rank(plan: plan_lib.Plan, found: Sequence[results_lib.Result]) -> list[Row]:
  """Returns the assignments, best first; seeds are averaged, never ranked."""
  points: dict[int, list[results_lib.Result]] = {}
  for result in found:
    points.setdefault(result.trial.point, []).append(result)
  rows = [_row(plan, repeats) for repeats in points.values()]
  return sorted(
    rows,
    key=lambda row: (
      _ORDER.index(row.status),
      -pruner_lib.comparable(row.mean, plan.goal)
      if row.mean is not None
      else 0,
      row.repeats[0].trial.index,
    ),
  )


def names(rows: Sequence[Row]) -> list[str]:
  """Returns the names of the varied bindings, in the sweep file's order."""
  planned = sorted(rows, key=lambda row: row.repeats[0].trial.index)
  return list(dict.fromkeys(name for row in planned for name in row.values))


def best_step(result: results_lib.Result, goal: str) -> int:
  """Returns the step of the best value of a trial; 0 if it has no values."""
  if not result.history:
    return 0
  return max(
    result.history, key=lambda pair: pruner_lib.comparable(pair[1], goal)
  )[0]


def _row(plan: plan_lib.Plan, repeats: Sequence[results_lib.Result]) -> Row:
  values = [result.value(plan.goal) for result in repeats]
  known = [value for value in values if value is not None]
  mean, deviation = None, 0.0
  if len(known) == len(values):
    mean = sum(known) / len(known)
    if len(known) > 1 and math.isfinite(mean):
      deviation = statistics.stdev(known)
  return Row(
    values=literals.assigned(repeats[0].bindings or ()),
    repeats=repeats,
    status=max((r.status for r in repeats), key=_ORDER.index),
    mean=mean,
    deviation=deviation,
  )

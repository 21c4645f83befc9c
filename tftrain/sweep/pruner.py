"""Pruning: stops unpromising trials early, by comparison with their peers.

There is no server. A trial with a new value reads the `metrics.jsonl` of the
others, and compares values at equal steps only.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import statistics
from typing import Any, Protocol

from tftrain import errors


class Pruner(Protocol):
  """Interface of a pruner: when to compare a trial, and whether to keep it."""

  def is_due(self, previous: int, step: int) -> bool:
    """Returns whether to compare at `step`, the next value after `previous`."""

  def keeps(self, own: Sequence[float], others: Sequence[float]) -> bool:
    """Returns whether a trial goes on.

    Args:
      own: Values of the trial so far, the present one last; greater is better.
      others: Values of its peers at the same step.
    """


@dataclasses.dataclass(frozen=True)
class Asha:
  """Asynchronous successive halving, in which no trial waits for another.

  At `min_steps`, then each time the step has grown by `factor`, a trial goes
  on only if it is in the best 1/`factor` of the trials that got there so far.
  From Li et al., A System for Massively Parallel Hyperparameter Tuning,
  https://arxiv.org/abs/1810.05934; the variant that stops instead of pausing.

  Attributes:
    min_steps: Step of the first comparison; no trial is pruned before it.
    factor: 1/`factor` of the trials are kept; also the ratio of the steps of
      two comparisons. At least 2, by default 3.
    min_trials: Trials that must reach a step before any is pruned there; by
      default 2.
  """

  min_steps: int
  factor: int = 3
  min_trials: int = 2

  def is_due(self, previous: int, step: int) -> bool:
    rung = self.min_steps
    while rung <= previous:
      rung *= self.factor
    return rung <= step

  def keeps(self, own: Sequence[float], others: Sequence[float]) -> bool:
    count = len(others) + 1
    if count < self.min_trials:
      return True
    better = sum(other > own[-1] for other in others)
    return better < math.ceil(count / self.factor)


@dataclasses.dataclass(frozen=True)
class Median:
  """Median rule: prunes a trial whose best value is below its peers' median.

  The median is that of the peers' values at the present step. From Golovin et
  al., Google Vizier, 2017, section 3.2.2.

  Attributes:
    min_steps: Step before which no trial is pruned.
    min_trials: Trials that must have a value at a step before any is pruned
      there; by default 4.
  """

  min_steps: int
  min_trials: int = 4

  def is_due(self, previous: int, step: int) -> bool:
    return step >= self.min_steps

  def keeps(self, own: Sequence[float], others: Sequence[float]) -> bool:
    if len(others) + 1 < self.min_trials:
      return True
    return max(own) >= statistics.median(others)


PRUNERS: Mapping[str, Any] = {'Asha': Asha, 'Median': Median}


def make(name: str, values: Mapping[str, Any]) -> Pruner:
  """Returns the pruner of a name.

  Raises:
    ConfigError: If `values` has an unknown or invalid parameter, or lacks
      min_steps.
  """
  kind = PRUNERS[name]
  known = [field.name for field in dataclasses.fields(kind)]
  for key, value in values.items():
    if key not in known:
      raise errors.ConfigError(
        f'{name} has no parameter {key!r}; it has {", ".join(known)}'
      )
    least = 2 if key == 'factor' else 1
    if not errors.is_count(value, least):
      raise errors.ConfigError(
        f'{name}.{key} = {value!r}; give a whole number of at least {least}'
      )
  if 'min_steps' not in values:
    raise errors.ConfigError(
      f'{name}.min_steps is required; say before which step nobody is pruned'
    )
  made: Pruner = kind(**values)
  return made


def facts(pruner: Pruner | None) -> dict[str, Any] | None:
  """Returns a pruner as JSON data, which `from_facts` reads."""
  if pruner is None:
    return None
  assert isinstance(pruner, Asha | Median)
  return {'name': type(pruner).__name__, **dataclasses.asdict(pruner)}


def from_facts(given: Mapping[str, Any] | None) -> Pruner | None:
  if given is None:
    return None
  values = dict(given)
  return make(values.pop('name'), values)


def comparable(value: Any, goal: str) -> float:
  """Returns a number of which greater is better; -inf for non-finite values."""
  number = float(value)
  if not math.isfinite(number):
    return -math.inf
  return number if goal == 'max' else -number

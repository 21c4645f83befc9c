"""Which trials are not worth going on with: decided from what peers wrote.

There is no server. Each trial reads the `metrics.jsonl` of the others when it
has a value itself, and compares at equal steps only.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import statistics
from typing import Any, Protocol

from tftrain import errors


class Pruner(Protocol):
  """Says when to compare, and what comes of it."""

  def is_due(self, previous: int, step: int) -> bool:
    """Whether to compare at `step`, the first value after `previous`."""

  def keeps(self, own: Sequence[float], others: Sequence[float]) -> bool:
    """Whether a trial goes on.

    Args:
      own: Its values so far, the present one last; greater is better.
      others: Those of its peers at the same step.
    """


@dataclasses.dataclass(frozen=True)
class Asha:
  """Asynchronous successive halving: few get far, and nobody waits for anyone.

  At `min_steps`, and at each further `factor` times as many steps, a trial
  goes on only if it is in the best 1/`factor` of those that were there so far.
  From Li et al., A System for Massively Parallel Hyperparameter Tuning,
  https://arxiv.org/abs/1810.05934; the variant that stops instead of pausing.

  Attributes:
    min_steps: Where the first comparison is; nobody is pruned before.
    factor: Of what is kept, and of the steps from one comparison to the next.
    min_trials: How many must have got there before anybody is pruned.
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
  """Ends a trial whose best so far is below the median of its peers now.

  From Golovin et al., Google Vizier, 2017, section 3.2.2.

  Attributes:
    min_steps: Nobody is pruned before.
    min_trials: How many must have a value at a step before anybody is pruned.
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
  """The pruner of that name.

  Raises:
    ConfigError: A value that it does not take, or one that makes no sense.
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
  """As JSON; `from_facts` makes it again."""
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
  """Greater is better, and what is not finite is worst."""
  number = float(value)
  if not math.isfinite(number):
    return -math.inf
  return number if goal == 'max' else -number

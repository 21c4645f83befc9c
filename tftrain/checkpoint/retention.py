"""Which checkpoints are kept."""

from collections.abc import Sequence
import dataclasses
import math

from tftrain import errors


@dataclasses.dataclass(frozen=True)
class KeepBest:
  """Keeps the checkpoints with the best values of a metric.

  A checkpoint is then also saved after each evaluation that brings one of the
  best values. NaN is worse than anything.

  >>> Experiment(..., best=KeepBest('eval/test/accuracy'))

  Attributes:
    metric: Full name, source/tag, such as `eval/test/accuracy`.
    goal: `max` or `min`.
    keep: How many.

  Raises:
    ConfigError: A goal or a number that is none.
  """

  metric: str
  goal: str = 'max'
  keep: int = 1

  def __post_init__(self) -> None:
    if self.goal not in ('min', 'max'):
      raise errors.ConfigError(
        f"KeepBest.goal must be 'min' or 'max', got {self.goal!r}"
      )
    if self.keep < 1:
      raise errors.ConfigError(
        f'KeepBest.keep must be at least 1, got {self.keep}'
      )

  def rank(self, value: float) -> float:
    """Greater is better."""
    if math.isnan(value):
      return -math.inf
    return value if self.goal == 'max' else -value


@dataclasses.dataclass(frozen=True)
class Saved:
  """What is known of a checkpoint without reading its values.

  Attributes:
    step: Of the run.
    finite: Whether all its values are.
    score: The value of `KeepBest.metric` at that step, where it was measured.
  """

  step: int
  finite: bool
  score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
  """What to keep of a run's checkpoints.

  Attributes:
    last: So many of the newest.
    every: The first at or after each multiple of so many steps, for good.
    best: Those with the best values of a metric.
    behind: The newest finite one at least so many steps before the newest.
  """

  last: int = 3
  every: int | None = None
  best: KeepBest | None = None
  behind: int = 0

  def __post_init__(self) -> None:
    for name, value in (('keep', self.last), ('keep_every', self.every)):
      if value is not None:
        errors.check_count(name, value)

  @property
  def most(self) -> int:
    """How many there may be at once, leaving `every` aside."""
    return self.last + (self.best.keep if self.best else 0) + bool(self.behind)

  def kept(self, saved: Sequence[Saved]) -> set[int]:
    """The steps to keep; `saved` is sorted by step.

    The last finite one is always among them.
    """
    steps = [one.step for one in saved]
    finite = [one.step for one in saved if one.finite]
    kept = {*steps[-self.last :], *finite[-1:]}
    kept.update(one.step for one in self.ranked(saved)[: self._keep_best])
    if self.behind:
      far = [step for step in finite if step <= steps[-1] - self.behind]
      kept.update(far[-1:])
    if self.every:
      first: dict[int, int] = {}
      for step in steps:
        first.setdefault(step // self.every, step)
      kept.update(step for index, step in first.items() if index > 0)
    return kept

  def ranked(self, saved: Sequence[Saved]) -> list[Saved]:
    """Those with a score, the best first; of equals the earlier."""
    if self.best is None:
      return []
    scored = [
      (self.best.rank(s.score), s) for s in saved if s.score is not None
    ]
    return [s for _, s in sorted(scored, key=lambda one: -one[0])]

  @property
  def _keep_best(self) -> int:
    return self.best.keep if self.best else 0

"""Retention: selects the checkpoints of a run to keep."""

from collections.abc import Sequence
import dataclasses
import math

from tftrain import errors


@dataclasses.dataclass(frozen=True)
class KeepBest:
  """Keeps the checkpoints with the best values of a metric.

  A checkpoint is then also saved after each evaluation that reaches one of the
  best values. NaN is worse than any other value.

  >>> Experiment(..., best=KeepBest('eval/test/accuracy'))

  Attributes:
    metric: Full name, source/tag, such as `eval/test/accuracy`.
    goal: `max` or `min`.
    keep: Number of checkpoints to keep.

  Raises:
    ConfigError: If `goal` is not 'min' or 'max', or `keep` is less than 1.
  """

  metric: str
  goal: str = 'max'
  keep: int = 1

  def __post_init__(self) -> None:
    if self.goal not in ('min', 'max'):
      raise errors.ConfigError(
        f"KeepBest.goal must be 'min' or 'max', got {self.goal!r}"
      )
    if not errors.is_count(self.keep):
      raise errors.ConfigError(
        f'KeepBest.keep must be at least 1, got {self.keep}'
      )

  def rank(self, value: float) -> float:
    """Returns a sort key of a value: greater is better."""
    if math.isnan(value):
      return -math.inf
    return value if self.goal == 'max' else -value


@dataclasses.dataclass(frozen=True)
class Saved:
  """The summary of a checkpoint, from its manifest.

  Attributes:
    step: Step of the run.
    finite: Whether all values are finite.
    score: Value of `KeepBest.metric` at that step; None if not measured.
  """

  step: int
  finite: bool
  score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
  """The rules that select the checkpoints to keep.

  Attributes:
    last: Number of newest checkpoints to keep.
    every: Steps; the first checkpoint at or after each multiple is kept for
      good.
    best: Metric and number of best checkpoints to keep.
    behind: Steps; the newest finite checkpoint that is at least this many steps
      older than the newest one is kept.

  Raises:
    ConfigError: If `last` or `every` is less than 1.
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
    """The maximum number of checkpoints at once, without those of `every`."""
    return self.last + (self.best.keep if self.best else 0) + bool(self.behind)

  def kept(self, saved: Sequence[Saved]) -> set[int]:
    """Returns the steps to keep; `saved` is sorted by step.

    The last finite checkpoint is always among them.
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
    """Returns the checkpoints with a score, best first, then earliest first."""
    if self.best is None:
      return []
    scored = [
      (self.best.rank(s.score), s) for s in saved if s.score is not None
    ]
    return [s for _, s in sorted(scored, key=lambda one: -one[0])]

  @property
  def _keep_best(self) -> int:
    return self.best.keep if self.best else 0

"""When things happen: Every, and small Actions of general use."""

from collections.abc import Callable
from collections.abc import Sequence
import math
import re
import time
from typing import Any

from tftrain import errors
from tftrain import reports

_UNITS = {'s': 1.0, 'm': 60.0, 'h': 3600.0}


class Every:
  """Runs `action` whenever another interval is done, and at the end.

  Counts crossings, not remainders, and has no state to save: resuming needs no
  care. The Trainer ends its blocks of steps where a number of steps is due, so
  the interval need not divide `steps_per_loop`.

  Args:
    interval: Steps, or a time such as '30s', '10m' or '2h'. Time is looked at
      when a block of steps ends.
    action: What to run.

  Raises:
    ConfigError: The interval is neither.
  """

  def __init__(self, interval: int | str, action: reports.Action):
    self._steps, self._seconds = _parse(interval)
    self._action = action
    self._last_time = time.monotonic()
    self._last_step = -1

  @property
  def acts_on_stop(self) -> bool:
    return getattr(self._action, 'acts_on_stop', False)

  def next_due(self, step: int) -> int | None:
    """The next step after `step` at which to run; None if a clock decides."""
    return (
      None if self._steps is None else (step // self._steps + 1) * self._steps
    )

  def __call__(self, report: reports.Report) -> reports.Signal | None:
    due = report.is_last or report.stopping or self._is_due(report)
    if not due or report.step == self._last_step:
      return None
    signal = self._action(report)
    self._last_time = time.monotonic()
    if signal is not reports.Signal.INTERRUPTED:
      self._last_step = report.step
    return signal

  def _is_due(self, report: reports.Report) -> bool:
    if self._steps is None:
      return time.monotonic() - self._last_time >= self._seconds
    return report.step // self._steps > report.previous_step // self._steps


def _parse(interval: int | str) -> tuple[int | None, float]:
  if isinstance(interval, int) and not isinstance(interval, bool):
    if interval >= 1:
      return interval, math.inf
  elif isinstance(interval, str):
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([smh])', interval.strip())
    if match and float(match[1]) > 0:
      return None, float(match[1]) * _UNITS[match[2]]
  raise errors.ConfigError(
    f'the interval {interval!r} is neither a number of steps of at least 1 nor '
    "a time such as '30s', '10m' or '2h'"
  )


def due_steps(action: Any, step: int) -> int | None:
  """The step at which an Action next wants a Report of its own, if any."""
  next_due: Callable[[int], int | None] | None = getattr(
    action, 'next_due', None
  )
  return next_due(step) if next_due else None


def dispatch(
  actions: Sequence[reports.Action], report: reports.Report
) -> set[reports.Signal | None]:
  """Gives a Report to those Actions that it concerns.

  A plain Action gets the Reports with scalars, first; one that has an interval
  of its own gets all. When the run is being stopped from outside, only those
  hear of it that must save (`acts_on_stop`).

  Returns:
    The signals that they gave; the first INTERRUPTED is the last of them.
  """
  signals = set()
  # Those that report come before those that may take long and be cut short.
  for action in sorted(actions, key=lambda a: hasattr(a, 'next_due')):
    if report.stopping:
      concerned = getattr(action, 'acts_on_stop', False)
    else:
      concerned = bool(report.scalars) or hasattr(action, 'next_due')
    if concerned:
      signals.add(action(report))
    if reports.Signal.INTERRUPTED in signals:
      break
  return signals


class EarlyStopping:
  """Asks to stop when a metric has not improved for `patience` Reports.

  >>> EarlyStopping('eval/test/loss', patience=3)

  Args:
    metric: Full name, source/tag, such as `eval/test/accuracy`.
    patience: How many Reports of that source may pass without a new best.
    goal: `min` or `max`.
    min_delta: By how much a new best must beat the old one.
  """

  def __init__(
    self,
    metric: str,
    patience: int = 5,
    *,
    goal: str = 'min',
    min_delta: float = 0.0,
  ):
    if goal not in ('min', 'max'):
      raise errors.ConfigError(f"goal must be 'min' or 'max', got {goal!r}")
    self.metric = metric
    self._source, _, self._tag = metric.rpartition('/')
    self._patience = patience
    self._sign = 1.0 if goal == 'max' else -1.0
    self._min_delta = min_delta
    self._best = -math.inf
    self._waited = 0

  def __call__(self, report: reports.Report) -> reports.Signal | None:
    if report.source != self._source or not report.scalars:
      return None
    if self._tag not in report.scalars:
      known = ', '.join(f'{report.source}/{tag}' for tag in report.scalars)
      raise errors.ConfigError(
        f'early stopping waits for {self._source}/{self._tag}, which is never '
        f'reported; reported are {known}'
      )
    value = self._sign * report.scalars[self._tag]
    if value > self._best + self._min_delta:
      self._best, self._waited = value, 0
    else:
      self._waited += 1
    return reports.Signal.STOP if self._waited >= self._patience else None

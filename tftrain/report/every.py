"""When things happen: Every, and small Actions of general use."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import copy
import math
import re
import time
from typing import Any, Protocol

from tftrain import errors
from tftrain.platform import goodput
from tftrain.report import report as report_lib

Interval = int | str
"""Steps, or a time such as '10m'."""

_UNITS = {'s': 1.0, 'm': 60.0, 'h': 3600.0}


class Stateful(Protocol):
  """An Action whose state goes into checkpoints, as JSON."""

  def read_state(self) -> dict[str, Any]: ...

  def write_state(self, state: Mapping[str, Any]) -> None: ...


def stateful(actions: Sequence[Any]) -> dict[str, Stateful]:
  """Those of `actions` that have a state, by the names of their classes."""
  found: dict[str, Stateful] = {}
  for action in actions:
    action = action.action if isinstance(action, Every) else action
    if hasattr(action, 'read_state') and hasattr(action, 'write_state'):
      name, count = type(action).__name__, 1
      while name in found:
        count += 1
        name = f'{type(action).__name__}_{count}'
      found[name] = action
  return found


class Every:
  """Runs `action` whenever another interval is done, and at the end.

  Counts crossings, not remainders, and has no state to save: resuming needs no
  care. The Trainer ends its blocks of steps where a number of steps is due, so
  the interval need not divide `steps_per_loop`.

  Args:
    interval: Steps, or a time such as '30s', '10m' or '2h', or a list of both:
      whichever comes first. Time is looked at when a block of steps ends.
    action: What to run.

  Raises:
    ConfigError: The interval is neither.
  """

  def __init__(
    self, interval: Interval | Sequence[Interval], action: report_lib.Action
  ):
    self._steps, self._seconds = _parse_all(interval)
    self.action = action
    self._last_time = time.monotonic()
    self._last_step = -1

  @property
  def acts_on_stop(self) -> bool:
    return getattr(self.action, 'acts_on_stop', False)

  @property
  def part(self) -> str:
    return _part_of(self.action)

  def next_due(self, step: int) -> int | None:
    """The next step after `step` at which to run; None if a clock decides."""
    return (
      None if self._steps is None else (step // self._steps + 1) * self._steps
    )

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    if report.step < self._last_step:  # the run went back
      self._last_step = -1
    asked = report.stopping or (report.saving and self.acts_on_stop)
    due = report.is_last or asked or self._is_due(report)
    if not due or report.step == self._last_step:
      return None
    signal = self.action(report)
    self._last_time = time.monotonic()
    if signal is not report_lib.Signal.INTERRUPTED:
      self._last_step = report.step
    return signal

  def _is_due(self, report: report_lib.Report) -> bool:
    if time.monotonic() - self._last_time >= self._seconds:
      return True
    if self._steps is None:
      return False
    return report.step // self._steps > report.previous_step // self._steps


def _parse_all(
  interval: Interval | Sequence[Interval],
) -> tuple[int | None, float]:
  """(steps or None, seconds) of an interval, or of the shortest of several."""
  if isinstance(interval, int | str):
    return _parse(interval)
  pairs = [_parse(one) for one in interval]
  if not pairs:
    raise errors.ConfigError('the list of intervals is empty; give one')
  steps = [n for n, _ in pairs if n is not None]
  return min(steps, default=None), min(seconds for _, seconds in pairs)


def seconds(time_text: str) -> float:
  """'90s', '10m' or '2h' in seconds."""
  steps, found = _parse(time_text)
  if steps is not None:
    raise errors.ConfigError(
      f"{time_text!r} is no time; give '30s', '10m' or '2h'"
    )
  return found


def _parse(interval: Interval) -> tuple[int | None, float]:
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


def _part_of(action: Any) -> str:
  """Where a Ledger books what an Action does."""
  owner = getattr(action, '__self__', action)  # of a method
  part: str = getattr(owner, 'part', 'actions')
  return part


def dispatch(
  actions: Sequence[report_lib.Action],
  report: report_lib.Report,
  ledger: goodput.Ledger | None = None,
) -> set[report_lib.Signal | None]:
  """Gives a Report to those Actions that it concerns.

  A plain Action gets the Reports with scalars, first; one that has an interval
  of its own gets all. When the run is being stopped from outside, only those
  hear of it that must save (`acts_on_stop`); they also hear of a save that
  somebody asked for.

  Args:
    actions: Who may hear of it.
    report: What happened.
    ledger: Where their time is booked.

  Returns:
    The signals that they gave; the first INTERRUPTED is the last of them.
  """
  signals = set()
  # Those that report come before those that may take long and be cut short.
  for action in sorted(actions, key=_place):
    if report.stopping:
      concerned = getattr(action, 'acts_on_stop', False)
    else:
      asked = report.saving and getattr(action, 'acts_on_stop', False)
      timed = hasattr(action, 'next_due')
      concerned = bool(report.scalars) or timed or asked
    if concerned:
      with (
        ledger.part(_part_of(action)) if ledger else contextlib.nullcontext()
      ):
        signals.add(action(report))
    if report_lib.Signal.INTERRUPTED in signals:
      break
  return signals


def own(
  actions: Sequence[report_lib.Action],
) -> tuple[list[report_lib.Action], list[report_lib.Action]]:
  """Copies of a recipe's Actions for one run, as they may have a state.

  Returns:
    Those that hear of training, and those that hear of evaluations, too
    (`hears_all`).
  """
  copies = [copy.copy(action) for action in actions]
  for action in copies:
    if isinstance(action, Every) and hasattr(action.action, 'bind'):
      action.action = copy.copy(action.action)
  hear_all = [a for a in copies if getattr(a, 'hears_all', False)]
  return [a for a in copies if a not in hear_all], hear_all


def bind(actions: Sequence[Any], run: Any) -> None:
  """Tells those Actions that have a `bind` which run they belong to."""
  for action in actions:
    action = action.action if isinstance(action, Every) else action
    if hasattr(action, 'bind'):
      action.bind(run)


def _place(action: Any) -> int:
  """Of 0 for plain Actions and 1 for timed ones, or what an Action asks for."""
  place: int = getattr(action, 'place', int(hasattr(action, 'next_due')))
  return place


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
    self._last_step = -1

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    if report.source != self._source or not report.scalars:
      return None
    if self._tag not in report.scalars:
      known = ', '.join(f'{report.source}/{tag}' for tag in report.scalars)
      raise errors.ConfigError(
        f'early stopping waits for {self._source}/{self._tag}, which is never '
        f'reported; reported are {known}'
      )
    # An evaluation that a stop cut short is reported again by the next life.
    if report.step != self._last_step:
      self._last_step = report.step
      value = self._sign * report.scalars[self._tag]
      if value > self._best + self._min_delta:
        self._best, self._waited = value, 0
      else:
        self._waited += 1
    return report_lib.Signal.STOP if self._waited >= self._patience else None

  def read_state(self) -> dict[str, Any]:
    # As a text, for JSON knows no infinity.
    best = str(self._best)
    return {'best': best, 'waited': self._waited, 'step': self._last_step}

  def write_state(self, state: Mapping[str, Any]) -> None:
    self._best = float(state['best'])
    self._waited, self._last_step = state['waited'], state['step']

"""Every: runs an Action at an interval."""

from collections.abc import Sequence
import copy
import time

from tftrain import errors
from tftrain.report import action as action_lib
from tftrain.report import interval as interval_lib
from tftrain.report import report as report_lib


class Every(action_lib.Action):
  """An Action (callback) that runs `action` at an interval and at the end.

  It counts crossings of multiples, not remainders, and has no state to save, so
  a resumed run needs no special care. The Trainer ends its blocks of steps at
  due steps, so the interval need not divide `steps_per_loop`.

  Args:
    interval: Steps, or a time such as '30s', '10m' or '2h', or a list of both,
      of which the first due interval counts. Time is checked at the end of a
      block of steps.
    action: The Action to run.

  Raises:
    ConfigError: If `interval` is neither steps nor a time, or an empty list.
  """

  needs_scalars = False
  place = 1

  def __init__(
    self,
    interval: interval_lib.Interval | Sequence[interval_lib.Interval],
    action: action_lib.ActionLike,
  ):
    self._steps, self._seconds = _parse_all(interval)
    self.action = action_lib.as_action(action)
    self.acts_on_stop = self.action.acts_on_stop
    self.part = self.action.part
    self._last_time = time.monotonic()
    self._last_step = -1

  def bind(self, run: report_lib.BoundRun) -> None:
    self.action.bind(run)

  def __copy__(self) -> 'Every':
    other = object.__new__(Every)
    other.__dict__.update(self.__dict__)
    other.action = copy.copy(self.action)
    return other

  def next_due(self, step: int) -> int | None:
    """Returns the next due step after `step`; None for a time alone."""
    return (
      None if self._steps is None else (step // self._steps + 1) * self._steps
    )

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    if report.step < self._last_step:  # the run was rewound
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
  interval: interval_lib.Interval | Sequence[interval_lib.Interval],
) -> tuple[int | None, float]:
  """Returns (steps or None, seconds), each the minimum over all intervals."""
  if isinstance(interval, int | str):
    return interval_lib.parse(interval)
  pairs = [interval_lib.parse(one) for one in interval]
  if not pairs:
    raise errors.ConfigError('the list of intervals is empty; give one')
  steps = [n for n, _ in pairs if n is not None]
  return min(steps, default=None), min(seconds for _, seconds in pairs)

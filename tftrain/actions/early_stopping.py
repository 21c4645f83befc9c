"""Early stopping: ends a run after a metric has ceased to improve."""

from collections.abc import Mapping
import math
from typing import Any

from tftrain import errors
from tftrain.report import action as action_lib
from tftrain.report import report as report_lib


class EarlyStopping(action_lib.Action):
  """Stops the run if a metric has not improved for `patience` Reports.

  >>> EarlyStopping('eval/test/loss', patience=3)

  Args:
    metric: Full name, source/tag, such as `eval/test/accuracy`.
    patience: Number of Reports of that source in a row, without a new best
      value, after which the run stops.
    goal: `min` or `max`.
    min_delta: Smallest improvement that counts as a new best value.

  Raises:
    ConfigError: If `goal` is neither `min` nor `max`. Also, in the run, if
      `metric` is not reported.
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
    # After a stop, the next attempt may report the same evaluation again.
    if report.step != self._last_step:
      self._last_step = report.step
      value = self._sign * report.scalars[self._tag]
      if value > self._best + self._min_delta:
        self._best, self._waited = value, 0
      else:
        self._waited += 1
    return report_lib.Signal.STOP if self._waited >= self._patience else None

  def read_state(self) -> dict[str, Any]:
    # As a string, because JSON has no infinity.
    best = str(self._best)
    return {'best': best, 'waited': self._waited, 'step': self._last_step}

  def write_state(self, state: Mapping[str, Any]) -> None:
    self._best = float(state['best'])
    self._waited, self._last_step = state['waited'], state['step']

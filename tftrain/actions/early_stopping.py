"""EarlyStopping: stops a run whose metric no longer improves."""

from collections.abc import Mapping
import math
from typing import Any

from tftrain import errors
from tftrain.report import report as report_lib


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

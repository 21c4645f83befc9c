"""LossSpike: an Action that ends a run, or makes it go back, when the loss
jumps."""

from collections.abc import Mapping
import math
import statistics
from typing import Any

from tftrain import errors
from tftrain.report import report as report_lib


class LossSpike:
  """Raises LossSpikeError when the train loss rises far above what it was.

  The means of `log_every` steps are compared with the median of the last ones.
  With `Experiment.rewind` the run goes back and passes over the steps; without,
  it ends there.

  >>> Experiment(..., actions=[LossSpike(3.0)], rewind=Rewind())

  Args:
    factor: How many times the median is a spike.
    reports: How many of the last reports the median is of; none is a spike
      before there are so many.
    metric: What to look at, of the train Reports.

  Raises:
    ConfigError: A factor or number that makes no sense.
  """

  def __init__(
    self, factor: float = 3.0, *, reports: int = 10, metric: str = 'loss'
  ):
    if factor <= 1:
      raise errors.ConfigError(
        f'LossSpike.factor must be greater than 1, got {factor}'
      )
    if reports < 1:
      raise errors.ConfigError(
        f'LossSpike.reports must be at least 1, got {reports}'
      )
    self._factor = factor
    self._count = reports
    self._metric = metric
    self._last: list[float] = []

  def __call__(self, report: report_lib.Report) -> None:
    value = report.scalars.get(self._metric)
    if report.source != 'train' or value is None or not math.isfinite(value):
      return
    if len(self._last) == self._count:
      median = statistics.median(self._last)
      if median > 0 and value > self._factor * median:
        raise errors.LossSpikeError(
          f'step {report.step}: the {self._metric} is {value:g}, '
          f'{value / median:.1f} times the median {median:g} of the last '
          f'{self._count} reports. Lower the learning rate, or give '
          'Experiment.rewind to pass over such steps',
          step=report.step,
        )
    self._last = [*self._last, value][-self._count :]

  def read_state(self) -> dict[str, Any]:
    return {'last': self._last}

  def write_state(self, state: Mapping[str, Any]) -> None:
    self._last = list(state['last'])

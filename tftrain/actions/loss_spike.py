"""Loss spikes: an Action that ends or rewinds a run after a loss spike."""

from collections.abc import Mapping
import math
import statistics
from typing import Any

from tftrain import errors
from tftrain.report import action as action_lib
from tftrain.report import report as report_lib


class LossSpike(action_lib.Action):
  """Raises LossSpikeError if the train loss rises far above its median.

  The mean over each `log_every` steps is compared with the median of the
  previous means. With `Experiment.rewind`, the run rewinds and skips the
  batches; without, the run ends.

  >>> Experiment(..., actions=[LossSpike(3.0)], rewind=Rewind())

  Args:
    factor: Multiple of the median above which a mean is a spike.
    reports: Number of previous Reports in the median. Before that many Reports,
      no spike is detected.
    metric: Tag of the metric in the train Reports.

  Raises:
    ConfigError: If `factor` is not above 1, or `reports` is below 1.
  """

  def __init__(
    self, factor: float = 3.0, *, reports: int = 10, metric: str = 'loss'
  ):
    if factor <= 1:
      raise errors.ConfigError(
        f'LossSpike.factor must be greater than 1, got {factor}'
      )
    if not errors.is_count(reports):
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

"""Progress bar: one updated line on a terminal, else a line per Report."""

import sys
import time
from typing import Any, TextIO

import tqdm

from tftrain.report import action as action_lib
from tftrain.report import report as report_lib

_HIDDEN = ('gradient_norm', 'learning_rate', 'update_ratio', 'loss_scale')
_MOST = 12  # metrics in a line
_FORMAT = '{n:,}/{total:,} |{bar:12}| {elapsed}<{remaining}{postfix}'


class ProgressBar(action_lib.Action):
  """Shows the step, metrics, speed, input wait and the remaining time.

  On a terminal, training is one line that is overwritten, and each evaluation
  is a line above it. Elsewhere each Report is a line with the time of day.

  Args:
    stream: Stream to write to; None means sys.stderr at the time of a Report.
  """

  part = 'summaries'

  def __init__(self, stream: TextIO | None = None):
    self._stream = stream
    self._bar: Any = None

  def __call__(self, report: report_lib.Report) -> None:
    if not report.scalars:
      return
    stream = self._stream or sys.stderr
    if not stream.isatty():
      print(_progress_line(report), file=stream, flush=True)
    elif report.source == 'train':
      self._show(report, stream)
    else:
      tqdm.tqdm.write(_progress_line(report), file=stream)

  def _show(self, report: report_lib.Report, stream: TextIO) -> None:
    """Redraws the line; the line of the last Report remains."""
    if self._bar is None:
      self._bar = tqdm.tqdm(
        total=report.last_step,
        initial=report.start_step,
        file=stream,
        bar_format=_FORMAT,
        dynamic_ncols=True,
        mininterval=0.0,
      )
    self._bar.total = report.last_step
    self._bar.n = report.step
    self._bar.set_postfix_str(f'{_metric_texts(report)}{_speed(report)}')
    if report.is_last:
      self._bar.close()
      self._bar = None


def _progress_line(report: report_lib.Report) -> str:
  clock = time.strftime('%H:%M:%S')
  count = f'{report.step:,}/{report.last_step:,}'
  line = f'{clock}  {report.source:<10} {count:>15}  {_metric_texts(report)}'
  rate = report.timing.get('steps_per_second', 0.0)
  if rate > 0:
    left = (report.last_step - report.step) / rate
    line += f'{_speed(report)}  {_duration(left)} left'
  return line


def _metric_texts(report: report_lib.Report) -> str:
  shown = [
    f'{tag} {value:.4g}'
    for tag, value in report.scalars.items()
    if not tag.endswith(_HIDDEN)
  ]
  more = len(shown) - _MOST
  return '  '.join([*shown[:_MOST], *([f'+{more:,} more'] if more > 0 else [])])


def _speed(report: report_lib.Report) -> str:
  rate = report.timing.get('steps_per_second', 0.0)
  if not rate > 0:
    return ''
  waits = report.timing.get('input_wait', 0.0)
  return f'  {rate:,.4g} steps/s' + (f'  input {waits:.0%}' if waits else '')


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f'{seconds:.0f} s'
  if seconds < 5400:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'

"""One line per Report, for a person who watches."""

import sys
import time

from tftrain import reports

_HIDDEN = ('gradient_norm', 'learning_rate')


class Progress:
  """Prints step, metrics, speed and the time that is left."""

  part = 'summaries'

  def __call__(self, report: reports.Report) -> None:
    if not report.scalars:
      return
    clock = time.strftime('%H:%M:%S')
    shown = '  '.join(
      f'{tag} {value:.4g}'
      for tag, value in report.scalars.items()
      if not tag.endswith(_HIDDEN)
    )
    count = f'{report.step:,}/{report.last_step:,}'
    line = f'{clock}  {report.source:<10} {count:>15}  {shown}'
    rate = report.timing.get('steps_per_second', 0.0)
    if rate > 0:
      left = (report.last_step - report.step) / rate
      line += f'  {rate:,.0f} steps/s  {_duration(left)} left'
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f'{seconds:.0f} s'
  if seconds < 5400:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'

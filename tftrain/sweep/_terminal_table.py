"""Terminal display of a running sweep: a live table, or plain lines."""

from collections.abc import Sequence
import sys
import time

from rich import console
from rich import live
from rich import table as rich_table

from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib

_STATES = ('running', 'pending', *_lease_lib.ENDED)
_ROWS = 12


class Lines:
  """A log with a line for each ended trial, and one with the counts."""

  def __init__(self, plan: plan_lib.Plan):
    self._plan = plan
    self._began = time.time()
    self._known: dict[int, str] | None = None

  def __enter__(self) -> 'Lines':
    return self

  def __exit__(self, *error: object) -> None:
    pass

  def __call__(self, found: Sequence[results_lib.Result]) -> None:
    now = {result.trial.index: result.status for result in found}
    ended = [
      result
      for result in found
      if result.status in _lease_lib.ENDED
      and result.status != (self._known or now)[result.trial.index]
    ]
    if self._known is not None and not ended:
      return
    self._known = now
    for result in ended:
      print(_result_line(result))
    clock = time.strftime('%H:%M:%S')
    print(f'{clock} {summary(self._plan, found, self._began)}', flush=True)


class Live:
  """A live table, redrawn in place."""

  def __init__(self, plan: plan_lib.Plan):
    self._plan = plan
    self._began = time.time()
    self._live = live.Live(
      console=console.Console(stderr=True), auto_refresh=False
    )

  def __enter__(self) -> 'Live':
    self._live.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._live.stop()

  def __call__(self, found: Sequence[results_lib.Result]) -> None:
    metric = self._plan.metric
    title = summary(self._plan, found, self._began)
    table = rich_table.Table(title=title, title_justify='left')
    for name in ('trial', 'status', 'step', metric, 'seconds'):
      table.add_column(name, no_wrap=True)
    ended = [r for r in found if r.status in _lease_lib.ENDED]
    ended.sort(key=lambda r: float(r.facts.get('ended', 0.0)))
    running = [r for r in found if r.status == 'running']
    for result in (ended + running)[-_ROWS:]:
      table.add_row(
        result.directory.name,
        result.status,
        f'{result.step:,}',
        f'{result.history[-1][1]:.4g}' if result.history else '',
        f'{result.seconds:.0f}',
      )
    self._live.update(table, refresh=True)


def make(plan: plan_lib.Plan) -> Lines | Live:
  """Returns a live table if stderr is a terminal, otherwise plain lines."""
  return Live(plan) if sys.stderr.isatty() else Lines(plan)


def summary(
  plan: plan_lib.Plan, found: Sequence[results_lib.Result], began: float
) -> str:
  """Returns one line with the counts, the best trial and the time left."""
  counts = {s: sum(r.status == s for r in found) for s in _STATES}
  parts = [f'{counts[s]} {s}' for s in _STATES if counts[s]]
  best = results_lib.best(found, plan.goal)
  if best:
    value = best.value(plan.goal)
    parts.append(f'best {plan.metric} {value:.4g} ({best.directory.name})')
  left = remaining(found, began)
  if left is not None:
    parts.append(f'about {duration(left)} left')
  return ', '.join(parts)


def remaining(
  found: Sequence[results_lib.Result], began: float
) -> float | None:
  """Estimates the seconds until all trials are over; None if unknown.

  Extrapolates the rate at which trials ended since `began`.
  """
  left = sum(r.status in ('pending', 'running') for r in found)
  ended = sum(float(r.facts.get('ended', 0.0)) >= began for r in found)
  if not left or not ended:
    return None
  return (time.time() - began) / ended * left


def duration(seconds: float) -> str:
  """Formats seconds as '90 s', '12 min' or '3.4 h'."""
  if seconds < 100:
    return f'{seconds:.0f} s'
  return (
    f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'
  )


def _result_line(result: results_lib.Result) -> str:
  value = f' {result.history[-1][1]:.4g}' if result.history else ''
  error = result.facts.get('error')
  said = f': {error}' if error else ''
  return (
    f'{result.directory.name} {result.status}{value} at step {result.step:,} '
    f'after {result.seconds:.1f} s{said}'
  )

"""Goodput: attributes the wall time of all attempts of a run to parts."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import time
from typing import Any

PARTS = (
  'start_up',
  'compile',
  'input_wait',
  'step',
  'evaluation',
  'checkpoint',
  'export',
  'summaries',
  'actions',
  'lost_to_restart',
)
"""The parts to which time is attributed.

`actions` is the time of Actions that are not tftrain's. `lost_to_restart` is
the time between a checkpoint and the attempt that resumes from it, including
repeated work and waiting.
"""

_ADVICE = {
  'start_up': 'longer attempts, or fewer of them, would weigh less',
  'compile': 'give the loop more steps, or take remat and jit out',
  'input_wait': 'see --mode=inspect_data',
  'evaluation': 'evaluate less often, or on less data',
  'checkpoint': 'save less often, or on a faster disk',
  'export': 'export at the end only',
  'summaries': 'log less often',
  'actions': 'run your Actions less often',
  'lost_to_restart': 'save more often, or look for what ends the run',
}
_WORTH_A_WORD = 0.1


class Ledger:
  """A clock that attributes each second to the innermost part entered.

  Checkpoints save its state, so the times of all attempts of a run add up.

  >>> with ledger.part('evaluation'):
  ...   evaluate()

  Args:
    started: Start of this attempt, in seconds since 1970; None means now.
  """

  def __init__(self, started: float | None = None):
    now = time.time()
    self.started = now if started is None else min(started, now)
    self._before = _empty_parts()  # earlier attempts
    self._own = _empty_parts()
    self._own['start_up'] = now - self.started
    self._part = 'start_up'
    self._since = time.perf_counter()

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Attributes the time in this context to a part.

    The time in a nested context goes to the part of that context.
    """
    outer = self._turn_to(name)
    try:
      yield
    finally:
      self._turn_to(outer)

  def move(self, seconds: float, source: str, target: str) -> None:
    """Moves up to `seconds` from the part `source` to the part `target`."""
    seconds = min(seconds, self._own[source])
    self._own[source] -= seconds
    self._own[target] += seconds

  def read(self) -> dict[str, float]:
    """Returns part -> seconds over all attempts until now."""
    self._turn_to(self._part)
    return {part: self._before[part] + self._own[part] for part in PARTS}

  def begin(self, first_start: float) -> None:
    """Begins a run at step 0; the time of earlier attempts counts as lost.

    Args:
      first_start: Start of the first attempt, in seconds since 1970.
    """
    self._before = _empty_parts()
    self._before['lost_to_restart'] = max(self.started - first_start, 0.0)

  def go_on_from(self, seconds: Mapping[str, float]) -> None:
    """Continues a finished run: the time since its end is not lost.

    Args:
      seconds: Part -> seconds at the end of the run.
    """
    self._before = {**_empty_parts(), **seconds}

  # The state that checkpoints save.

  def read_state(self) -> dict[str, Any]:
    self._turn_to(self._part)
    return {
      'before': dict(self._before),
      'own': dict(self._own),
      'attempt': self.started,
      'at': time.time(),
    }

  def write_state(self, state: Mapping[str, Any]) -> None:
    before, own = state['before'], state['own']
    if state['attempt'] == self.started:  # a rewind within an attempt
      self._turn_to(self._part)
      self._before, self._own = dict(before), dict(own)
      self._own['lost_to_restart'] += max(time.time() - state['at'], 0.0)
      return
    self._before = {part: before[part] + own[part] for part in PARTS}
    lost = max(self.started - state['at'], 0.0)
    self._before['lost_to_restart'] += lost

  def _turn_to(self, part: str) -> str:
    """Enters a part; returns the part that was active before."""
    now = time.perf_counter()
    self._own[self._part] += now - self._since
    self._since = now
    left, self._part = self._part, part
    return left


def process_start() -> float:
  """Returns the start of this process, in seconds since 1970.

  On Linux the kernel knows the start, so imports before tftrain's count too.
  On other systems the result is the current time.
  """
  try:
    with open('/proc/self/stat', 'rb') as file:
      ticks = int(file.read().rpartition(b')')[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf(
      'SC_CLK_TCK'
    )
  except (OSError, ValueError, AttributeError):
    return time.time()
  return time.time() - max(age, 0.0)


def waits_for_input(seconds: Mapping[str, float]) -> bool:
  """Returns whether input wait (a data stall) is the main overhead."""
  others = {part: s for part, s in seconds.items() if part != 'step'}
  worst = max(others, key=lambda part: others[part])
  total = sum(seconds.values())
  return worst == 'input_wait' and others[worst] >= _WORTH_A_WORD * total


def table(seconds: Mapping[str, float], hint: str = '') -> str:
  """Returns a line for each part that took time, and a verdict.

  Args:
    seconds: Part -> seconds, as `Ledger.read` returns it.
    hint: Advice for the case that input wait is the main overhead.
  """
  total = sum(seconds.values()) or 1.0
  lines = [
    f'{part.replace("_", " "):<16} {value:10.1f} s {value / total:6.1%}'
    for part, value in seconds.items()
    if value >= 0.05
  ]
  lines.append(f'{"in all":<16} {total:10.1f} s')
  return '\n'.join([*lines, _verdict(seconds, hint)])


def _verdict(seconds: Mapping[str, float], hint: str) -> str:
  """Returns the largest part besides the steps, with advice."""
  total = sum(seconds.values()) or 1.0
  others = {part: s for part, s in seconds.items() if part != 'step'}
  worst = max(others, key=lambda part: others[part])
  share = others[worst] / total
  if share < _WORTH_A_WORD:
    return f'{seconds["step"] / total:.0%} of the time went into steps.'
  if worst == 'input_wait':
    advice = hint or _ADVICE[worst]
    return f'{share:.0%} of the time waits for input; {advice}.'
  what = worst.replace('_', ' ')
  return f'{share:.0%} of the time is {what}; {_ADVICE[worst]}.'


def _empty_parts() -> dict[str, float]:
  return dict.fromkeys(PARTS, 0.0)

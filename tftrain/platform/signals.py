"""Signals and time limits: stop or save a run after the current step."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import ctypes
import os
import signal
import sys
import threading
from typing import Any

from tftrain import errors

STOP_SIGNALS = ('SIGTERM', 'SIGINT')
SAVE_SIGNALS = ('SIGUSR1',)


class Interrupted(BaseException):
  """Raised by a stop request inside `Stopper.interrupting`."""


class Stopper:
  """The stop request of a run, if there is one."""

  def __init__(self) -> None:
    self.reason: str | None = None
    """A signal such as `SIGTERM`, or `max_time`; None without a request."""
    self._leave_at_once = False

  @property
  def exit_code(self) -> int:
    """The exit code: 0 without a request, else 128 + the signal's number.

    The code is that of shells; `max_time` counts as a SIGTERM.
    """
    if self.reason is None:
      return 0
    name = 'SIGTERM' if self.reason == 'max_time' else self.reason
    return 128 + signal.Signals[name]

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Makes a signal raise Interrupted in this context, in the main thread.

    The context is for long operations that are not loops of tftrain and leave
    nothing half done.
    """
    if self.reason:
      raise Interrupted
    self._leave_at_once = True
    try:
      yield
    finally:
      self._leave_at_once = False

  def handle(self, signum: int, frame: Any) -> None:
    """Handles a signal between two bytecodes of the main thread."""
    del signum, frame
    if self._leave_at_once:
      self._leave_at_once = False
      raise Interrupted


@contextlib.contextmanager
def stop_on_signal(
  request_stop: Callable[[], None],
  request_save: Callable[[], None] = lambda: None,
  *,
  stop: Sequence[str] = STOP_SIGNALS,
  save: Sequence[str] = SAVE_SIGNALS,
  max_seconds: float | None = None,
) -> Iterator[Stopper]:
  """Calls `request_stop` or `request_save` when a signal arrives.

  The call does not wait for the end of a compiled loop. A second SIGINT aborts
  the process at once; a partially written checkpoint is never committed. Only
  the main thread can set signal handlers; in another thread signals keep their
  previous effect.

  Args:
    request_stop: Function that ends the run after the current step.
    request_save: Function that saves after the current step.
    stop: Names of the signals that stop; add `SIGUSR2` for the warning of a
      scheduler.
    save: Names of the signals that save.
    max_seconds: Time limit in seconds, counted from now; None means no limit.

  Yields:
    A Stopper with the reason of the stop and the exit code.

  Raises:
    ConfigError: If a name in `stop` or `save` is not a signal that can be
      caught, or is in both.
  """
  stopping, saving = numbers_of(stop), numbers_of(save)
  if stopping & saving:
    name = signal.Signals(min(stopping & saving)).name
    raise errors.ConfigError(f'{name} is to stop and to save; choose one')
  stopper = Stopper()

  def ask(reason: str) -> None:
    stopper.reason = stopper.reason or reason
    again = '; again to abort now' if reason == 'SIGINT' else ''
    _print_notice(f'{reason}: stopping after this step{again}')
    request_stop()

  interrupts = 0

  def receive(signum: int) -> None:
    nonlocal interrupts
    name = signal.Signals(signum).name
    if signum in saving:
      _print_notice(f'{name}: saving after this step')
      request_save()
    elif signum in stopping:
      interrupts += signum == signal.SIGINT
      if interrupts > 1:
        os._exit(128 + signum)
      ask(name)

  with contextlib.ExitStack() as stack:
    if max_seconds is not None:
      timer = threading.Timer(max_seconds, ask, ('max_time',))
      timer.daemon = True
      timer.start()
      stack.callback(timer.cancel)
    if threading.current_thread() is threading.main_thread():
      stack.enter_context(_watched(stopping | saving, stopper.handle, receive))
    yield stopper


@contextlib.contextmanager
def _watched(
  numbers: set[int],
  handle: Callable[[int, Any], None],
  receive: Callable[[int], None],
) -> Iterator[None]:
  """Passes each signal to `receive`, on a thread, as soon as it arrives.

  Python runs signal handlers only between bytecodes, so no handler runs during
  a compiled loop. The C half of Python writes each signal's number to a pipe
  at once; the thread reads the number from the pipe.
  """
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)

  def watch() -> None:
    while True:
      received = os.read(read_end, 1)
      if not received or received[0] == 0:
        return
      receive(received[0])

  watcher = threading.Thread(target=watch, name='tftrain-signals', daemon=True)
  watcher.start()
  old_fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  try:
    with handled(numbers, handle):
      yield
  finally:
    signal.set_wakeup_fd(old_fd)
    # Either call ends the thread; an error of the pipe must not fail the run.
    with contextlib.suppress(OSError):
      os.write(write_end, b'\0')
    with contextlib.suppress(OSError):
      os.close(write_end)
    watcher.join()
    with contextlib.suppress(OSError):
      os.close(read_end)


@contextlib.contextmanager
def handled(
  numbers: Iterable[int], handle: Callable[[int, Any], None]
) -> Iterator[None]:
  """Handles signals with `handle` in this context; main thread only."""
  before = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def end_with_parent() -> None:
  """Requests a SIGTERM from the kernel at any death of the parent (Linux)."""
  if sys.platform == 'linux':
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def numbers_of(names: Sequence[str]) -> set[int]:
  """Returns the numbers of signals.

  Raises:
    ConfigError: If a name is not a signal that can be caught.
  """
  found = set()
  for name in names:
    number = getattr(signal, str(name), None)
    catchable = number not in (signal.SIGKILL, signal.SIGSTOP)
    if not isinstance(number, signal.Signals) or not catchable:
      raise errors.ConfigError(
        f'{name!r} is no signal that can be caught; give a name such as SIGUSR2'
      )
    found.add(int(number))
  return found


def _print_notice(text: str) -> None:
  print(text, file=sys.stderr, flush=True)

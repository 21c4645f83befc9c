"""Stopping when asked: a signal or a deadline stops the run after a step."""

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
  """Raised where a stop was asked for in a part that may be left at once."""


class Stopper:
  """What asked the run to stop; nothing if nothing did."""

  def __init__(self) -> None:
    self.reason: str | None = None
    """`SIGTERM`, say, or `max_time`."""
    self._leave_at_once = False

  @property
  def exit_code(self) -> int:
    """128 + the signal's number, as shells have it; a deadline is a SIGTERM."""
    if self.reason is None:
      return 0
    name = 'SIGTERM' if self.reason == 'max_time' else self.reason
    return 128 + signal.Signals[name]

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """A part in which a signal raises Interrupted, in the main thread.

    For what takes long, is not a loop of ours and leaves nothing half done.
    """
    if self.reason:
      raise Interrupted
    self._leave_at_once = True
    try:
      yield
    finally:
      self._leave_at_once = False

  def handle(self, signum: int, frame: Any) -> None:
    """Python calls it between two bytecodes of the main thread."""
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

  It does not wait for the end of a compiled loop. A second SIGINT aborts at
  once: what is half written was never committed. Only the main thread may set
  handlers; elsewhere signals do nothing new.

  Args:
    request_stop: Ends the run after the step in progress.
    request_save: Saves after the step in progress.
    stop: Names of the signals that stop; `SIGUSR2` for a scheduler's warning.
    save: Names of those that save.
    max_seconds: When to stop in any case, counted from now.

  Raises:
    ConfigError: No such signal, or one that asks for both.
  """
  stopping, saving = numbers_of(stop), numbers_of(save)
  if stopping & saving:
    name = signal.Signals(min(stopping & saving)).name
    raise errors.ConfigError(f'{name} is to stop and to save; choose one')
  stopper = Stopper()

  def ask(reason: str) -> None:
    stopper.reason = stopper.reason or reason
    again = '; again to abort now' if reason == 'SIGINT' else ''
    _say(f'{reason}: stopping after this step{again}')
    request_stop()

  interrupts = 0

  def receive(signum: int) -> None:
    nonlocal interrupts
    name = signal.Signals(signum).name
    if signum in saving:
      _say(f'{name}: saving after this step')
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
  """Gives each signal to `receive`, on a thread, as soon as it comes.

  Python runs signal handlers only between bytecodes, so while a compiled loop
  runs no handler would. The C half of Python writes each signal's number to a
  pipe at once; the thread reads it there.
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
    # Either ends the thread; what becomes of a pipe is no reason to fail.
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
  """Gives signals to `handle` for a while; in the main thread only."""
  before = {number: signal.signal(number, handle) for number in numbers}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def end_with_parent() -> None:
  """Asks the kernel for a SIGTERM when the parent dies, however it does."""
  if sys.platform == 'linux':
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def numbers_of(names: Sequence[str]) -> set[int]:
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


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)

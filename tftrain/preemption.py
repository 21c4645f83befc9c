"""Stopping when asked: SIGTERM and SIGINT become a stop after this step."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopper:
  """Which signal asked the run to stop; None if none did."""

  signum: int | None = None

  @property
  def exit_code(self) -> int:
    return 0 if self.signum is None else 128 + self.signum


@contextlib.contextmanager
def stop_on_signal(request_stop: Callable[[], None]) -> Iterator[Stopper]:
  """Calls `request_stop` when SIGTERM or SIGINT arrives.

  Python runs signal handlers only between bytecodes, so while a compiled loop
  runs no handler would. The C half of Python writes each signal's number to a
  pipe at once; a thread reads it there and asks the loop to stop. A second
  SIGINT aborts at once.

  Only the main thread may set handlers; elsewhere this does nothing.
  """
  stopper = Stopper()
  if threading.current_thread() is not threading.main_thread():
    yield stopper
    return
  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)

  def watch() -> None:
    interrupts = 0
    while True:
      received = os.read(read_end, 1)
      signum = received[0] if received else 0
      if signum == 0:
        return
      if signum not in _SIGNALS:
        continue
      interrupts += signum == signal.SIGINT
      if interrupts > 1:
        os._exit(128 + signum)
      stopper.signum = stopper.signum or signum
      name = signal.Signals(signum).name
      print(
        f'{name}: stopping after this step'
        + ('; again to abort now' if signum == signal.SIGINT else ''),
        file=sys.stderr,
        flush=True,
      )
      request_stop()

  watcher = threading.Thread(target=watch, name='tftrain-signals', daemon=True)
  watcher.start()
  handlers = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
  old_fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  try:
    yield stopper
  finally:
    signal.set_wakeup_fd(old_fd)
    for signum, handler in handlers.items():
      signal.signal(signum, handler)
    os.write(write_end, b'\0')
    watcher.join()
    os.close(read_end)
    os.close(write_end)

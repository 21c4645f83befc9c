"""What is asked of a Trainer from outside: to stop, or to save and go on."""

from collections.abc import Callable
import functools
import threading
from typing import Any

from tftrain.train import counters as counters_lib


class StopRequests:
  """Safe from any thread; the compiled loop sees them before its next step.

  Where several workers train, `counters.stop` is what they agreed upon, and a
  variable of its own takes what this one is asked.

  Args:
    counters: The loop's; `counters.stop` is what it looks at.
  """

  def __init__(self, counters: counters_lib.Counters):
    self._agreed = counters.stop
    self._flag = counters.workers.asked(counters.stop)
    self._lock = threading.Lock()
    self._save = False
    self._stopping = False

  @property
  def stopping(self) -> bool:
    """Whether a stop was asked for, of this worker or another."""
    return self._stopping or self._heard() == counters_lib.STOP

  def _heard(self) -> int:
    """What the workers agreed upon; nothing where there is one."""
    alone = self._flag is self._agreed
    return counters_lib.RUN if alone else int(self._agreed.numpy())

  def stop(self) -> None:
    with self._lock:
      self._stopping = True
      self._flag.assign(counters_lib.STOP)

  def save(self) -> None:
    with self._lock:
      self._save = True
      if not self._stopping:
        self._flag.assign(counters_lib.PAUSE)

  def settle(self) -> None:
    """Notes that the workers agreed to save; all do so at the same step."""
    if self._heard() == counters_lib.PAUSE:
      with self._lock:
        self._save = True
        self._agreed.assign(counters_lib.RUN)
        if not self._stopping:
          self._flag.assign(counters_lib.RUN)

  def take_save(self) -> bool:
    """Whether a save was asked for since the last call."""
    with self._lock:
      asked, self._save = self._save, False
      if asked and not self._stopping:
        self._flag.assign(counters_lib.RUN)
    return asked

  def clear(self) -> None:
    """What was asked was done."""
    with self._lock:
      self._stopping = False
      self._flag.assign(counters_lib.RUN)
      self._agreed.assign(counters_lib.RUN)


def settled(method: Callable[..., Any]) -> Callable[..., Any]:
  """Settles `self._requests` after a method of a Trainer."""

  @functools.wraps(method)
  def run(self: Any, *args: Any) -> Any:
    try:
      return method(self, *args)
    finally:
      self._requests.settle()

  return run

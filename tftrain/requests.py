"""What other threads ask of a Trainer: to stop, or to save and go on."""

import threading

from tftrain import loops


class Requests:
  """Safe from any thread; the compiled loop sees them before its next step.

  Args:
    counters: The loop's; `counters.stop` is what it looks at.
  """

  def __init__(self, counters: loops.Counters):
    self._flag = counters.stop
    self._lock = threading.Lock()
    self._save = False
    self.stopping = False
    """Whether a stop was asked for."""

  def stop(self) -> None:
    with self._lock:
      self.stopping = True
      self._flag.assign(loops.STOP)

  def save(self) -> None:
    with self._lock:
      self._save = True
      if not self.stopping:
        self._flag.assign(loops.PAUSE)

  def take_save(self) -> bool:
    """Whether a save was asked for since the last call."""
    with self._lock:
      asked, self._save = self._save, False
      if asked and not self.stopping:
        self._flag.assign(loops.RUN)
    return asked

  def clear(self) -> None:
    """What was asked was done."""
    with self._lock:
      self.stopping = False
      self._flag.assign(loops.RUN)

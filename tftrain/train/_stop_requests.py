"""Stop and save requests to a Trainer, from signals and other threads."""

from collections.abc import Iterator
import contextlib
import threading

from tftrain.train import counters as counters_lib


class StopRequests:
  """Pending requests to stop, or to save and go on; thread-safe.

  The compiled loop reads a request before its next step. In a multi-worker run,
  a second variable holds the requests to this worker, and `counters.stop` holds
  the state that all workers agreed on.

  Args:
    counters: The Counters of the training loop, which reads `counters.stop`.
  """

  def __init__(self, counters: counters_lib.Counters):
    self._agreed = counters.stop
    self._flag = counters.workers.asked(counters.stop)
    self._lock = threading.Lock()
    self._save = False
    self._stopping = False

  @property
  def stopping(self) -> bool:
    """True if this worker or another received a stop request."""
    return self._stopping or self._heard() == counters_lib.STOP

  def _heard(self) -> int:
    """Returns the state that the workers agreed on; RUN for a single worker."""
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

  @contextlib.contextmanager
  def settled(self) -> Iterator[None]:
    """Turns an agreed pause into a pending save at the end of this context.

    All workers do so at the same step.
    """
    try:
      yield
    finally:
      self._settle()

  def _settle(self) -> None:
    if self._heard() == counters_lib.PAUSE:
      with self._lock:
        self._save = True
        self._agreed.assign(counters_lib.RUN)
        if not self._stopping:
          self._flag.assign(counters_lib.RUN)

  def take_save(self) -> bool:
    """Returns whether a save was requested since the last call."""
    with self._lock:
      asked, self._save = self._save, False
      if asked and not self._stopping:
        self._flag.assign(counters_lib.RUN)
    return asked

  def clear(self) -> None:
    """Clears a stop request at the end of a run."""
    with self._lock:
      self._stopping = False
      self._flag.assign(counters_lib.RUN)
      self._agreed.assign(counters_lib.RUN)

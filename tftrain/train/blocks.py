"""Blocks: the batches of several steps at once, for a block loop."""

from collections.abc import Callable
import threading
import time
from typing import Any

MOST = 512
"""Most steps of a block of arrays in memory."""

STACKED = 64
"""Most batches that are stacked, where the data are not arrays in memory."""

RAGGED = 'ragged'
"""The block of a last batch that is not full: it has a program of its own."""


class Taken:
  """The batches of some steps, which a thread takes while a block runs.

  Attributes:
    step: The first step whose batch was not used yet.
    offset: Its index in the stacked batches.
    waited: Seconds that `result` waited.
  """

  def __init__(
    self, take: Callable[[], tuple[Any, Any]], step: int, *, daemon: bool = True
  ):
    self.step = step
    self.offset = 0
    self.waited = 0.0
    self._take = take
    self._found: tuple[Any, int] | None = None
    self._error: BaseException | None = None
    self._thread = threading.Thread(target=self._run, daemon=daemon)

  def start(self) -> None:
    self._thread.start()

  def result(self) -> tuple[Any, int]:
    """Returns (batches, stacked, number of those not used yet).

    Raises:
      OutOfRangeError: If the data has ended.
    """
    begun = time.perf_counter()
    if self._thread.ident is None:
      self._run()
    else:
      self._thread.join()
    self.waited += time.perf_counter() - begun
    if self._error is not None:
      raise self._error
    assert self._found is not None
    stacked, count = self._found
    return stacked, count - self.offset

  def join(self) -> None:
    if self._thread.ident is not None:
      self._thread.join()

  def _run(self) -> None:
    if self._found is not None or self._error is not None:
      return
    try:
      stacked, count = self._take()
      self._found = stacked, int(count)
    except BaseException as error:  # raised by `result`, in its thread
      self._error = error


class Blocks:
  """What a block loop takes its batches from.

  Args:
    iterator: An iterator of batches; None if they are arrays in memory.
    full_steps: Number of steps whose batches are full; None means all.
    most: Most steps of a block.
    ahead: Whether batches may be taken from the iterator that no step of the
      call needs; not if checkpoints save the iterator itself.
  """

  def __init__(
    self,
    iterator: Any = None,
    *,
    full_steps: int | None = None,
    most: int = MOST,
    ahead: bool = True,
  ):
    self.iterator = iterator
    self.ahead = ahead
    self.taken: list[Taken] = []
    """Batches that were taken and not used yet, in order."""
    self._full_steps = full_steps
    self._most = most

  def at(self, step: int) -> tuple[Any, int]:
    """Returns (argument of `Feed.take_block`, most steps of the block)."""
    if self._full_steps is None:
      return self.iterator, self._most
    if step >= self._full_steps:
      return RAGGED, 1
    return None, min(self._most, self._full_steps - step)

  def use(self, taken: Taken, count: int) -> None:
    """Counts batches that were used, and keeps the others."""
    taken.step += count
    taken.offset += count
    if taken.result()[1]:
      self.taken.insert(0, taken)

  def held(self, step: int) -> Taken | None:
    """Returns batches from `step` on that were taken before, if any."""
    if self.taken and self.taken[0].step == step:
      return self.taken.pop(0)
    self.taken.clear()
    return None

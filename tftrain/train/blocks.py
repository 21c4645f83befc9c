"""Blocks: the batches of several steps at once, for a block loop."""

from typing import Any

MOST = 512
"""Most steps of a block of arrays in memory."""

STACKED = 64
"""Most batches that are stacked, where the data are not arrays in memory."""

RAGGED = 'ragged'
"""The block of a last batch that is not full: it has a program of its own."""


class Blocks:
  """What a block loop takes its batches from.

  Args:
    iterator: An iterator of batches; None if the graph makes them.
    full_steps: Number of steps whose batches are full; None means all.
  """

  def __init__(self, iterator: Any = None, full_steps: int | None = None):
    self.iterator = iterator
    self._full_steps = full_steps

  def at(self, step: int) -> tuple[Any, int]:
    """Returns (argument of the compiled block, most steps of the block)."""
    if self.iterator is not None:
      return self.iterator, STACKED
    if self._full_steps is None:
      return None, MOST
    if step >= self._full_steps:
      return RAGGED, 1
    return None, min(MOST, self._full_steps - step)

"""SkippedSteps: steps that a run passes over, because it was bad to take them."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tftrain.train import counters as counters_lib
from tftrain.train import feed as feed_lib


class SkippedSteps:
  """Ranges of steps whose batches are taken from the data and not used.

  They are part of what a run is: every checkpoint after them says so.
  """

  def __init__(self) -> None:
    self.parts: tuple[tuple[int, int], ...] = ()
    """(first, last) step of each, counted from 1."""

  def add(self, first: int, last: int) -> None:
    self.parts = (*self.parts, (first, last))

  def holds(self, step: int) -> bool:
    return any(first <= step <= last for first, last in self.parts)

  def edges(self, step: int) -> list[int]:
    """After which later steps they begin and end: blocks are cut there."""
    edges = [edge for first, last in self.parts for edge in (first - 1, last)]
    return [edge for edge in edges if edge > step]

  def facts(self) -> list[list[int]]:
    return [list(part) for part in self.parts]

  def write_facts(self, facts: Mapping[str, Any]) -> None:
    self.parts = tuple((first, last) for first, last in facts['passed_over'])


def skip(
  feed: feed_lib.Feed,
  iterator: Any,
  counters: counters_lib.Counters,
  until: int,
) -> bool:
  """Takes batches up to `until` and does nothing; True if the data ended."""
  try:
    while int(counters.step.numpy()) < until:
      feed.take(iterator, counters.step.read_value())
      counters.step.assign_add(1)
  except tf.errors.OutOfRangeError:
    return True
  return False

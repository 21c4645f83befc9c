"""SkippedSteps: ranges of steps with skipped batches."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tftrain.train import counters as counters_lib
from tftrain.train import feed as feed_lib


class SkippedSteps:
  """Ranges of steps whose batches are read from the data and not used.

  The ranges are part of the run's facts, which every checkpoint holds.
  """

  def __init__(self) -> None:
    self.parts: tuple[tuple[int, int], ...] = ()
    """(first, last) step of each range, counted from 1, both inclusive."""

  def add(self, first: int, last: int) -> None:
    self.parts = (*self.parts, (first, last))

  def holds(self, step: int) -> bool:
    return any(first <= step <= last for first, last in self.parts)

  def edges(self, step: int) -> list[int]:
    """Returns the steps after `step` at which a block must end for a range."""
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
  """Skips the batches up to step `until`; returns True if the data ended."""
  try:
    while int(counters.step.numpy()) < until:
      feed.take(iterator, counters.step.read_value())
      counters.step.assign_add(1)
      counters.without_update.assign_add(1)
  except tf.errors.OutOfRangeError:
    return True
  return False

"""Batches that hold only one worker's rows of each global batch."""

from collections.abc import Callable

import tensorflow as tf

from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import source as source_lib
from tftrain.distribute import row_sharding

Mapped = Callable[[tf.data.Dataset], tf.data.Dataset]
"""From (position, example), one by one, to (position, mapped example)."""


def batches(
  source: source_lib.Source,
  size: int,
  order: shuffle_lib.Order,
  start_step: int,
  cut: row_sharding.Cut,
  *,
  drop: bool,
  mapped: Mapped | None,
) -> tf.data.Dataset | None:
  """Batches from `start_step` on; None if the source cannot be cut.

  Args:
    source: Of the examples.
    size: Rows of a whole batch.
    order: In which the examples come.
    start_step: The first batch.
    cut: Which of their rows to make.
    drop: Whether to leave out a last batch that is not full.
    mapped: What is done to single examples; None leaves them.
  """
  chunks = source.own(size, order, start_step * size, cut)
  if chunks is None:
    return None
  total = None
  if order.epochs is not None:
    assert source.num_examples is not None
    total = order.epochs * source.num_examples
    if drop:
      total -= total % size
      chunks = chunks.take(max(0, total // size - start_step))
  if mapped is None:
    return chunks
  # Positions are those of the whole batch: a map's seed is made of them.
  numbered = chunks.enumerate(start_step).map(
    lambda step, own: (
      shuffle_lib.positions(step * size, size, total, cut),
      own,
    )
  )
  first, end = cut(size)
  made = mapped(numbered.unbatch()).ragged_batch(
    end - first, drop_remainder=drop or total is None
  )
  if total is not None and start_step * size < total:
    first, end = cut(total % size or size)
    if first == end:  # else this worker would end a step before the others
      made = made.concatenate(_no_rows(source, mapped))
  return made.map(lambda _, examples: examples)


def _no_rows(source: source_lib.Source, mapped: Mapped) -> tf.data.Dataset:
  """A batch of no example."""
  one = source.chunks(1, shuffle_lib.Order()).unbatch().enumerate().take(1)
  return (
    mapped(one)
    .ragged_batch(1)
    .map(lambda *batch: tf.nest.map_structure(lambda leaf: leaf[:0], batch))
  )

"""Batches that hold only one worker's rows of each global batch."""

from collections.abc import Callable

import tensorflow as tf

from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import source as source_lib
from tftrain.distribute import row_sharding

Mapped = Callable[[tf.data.Dataset], tf.data.Dataset]
"""Maps a dataset of (position, example) to (position, mapped example)."""


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
  """Returns batches from `start_step` on, with one worker's rows.

  Args:
    source: Source of the examples.
    size: Rows of a global batch.
    order: Order of the examples.
    start_step: Step of the first batch.
    cut: Selects the worker's rows of a global batch.
    drop: True drops a last batch that is not full.
    mapped: Maps single examples; None leaves them unchanged.

  Returns:
    The batches, or None if the source cannot read selected rows only.
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
  # Positions count in the global batch: the seed of a map depends on them.
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
    if first == end:  # otherwise this worker would end a step before the others
      made = made.concatenate(_no_rows(source, mapped))
  return made.map(lambda _, examples: examples)


def _no_rows(source: source_lib.Source, mapped: Mapped) -> tf.data.Dataset:
  """Returns a dataset of one batch with 0 rows."""
  one = source.chunks(1, shuffle_lib.Order()).unbatch().enumerate().take(1)
  return (
    mapped(one)
    .ragged_batch(1)
    .map(lambda *batch: tf.nest.map_structure(lambda leaf: leaf[:0], batch))
  )

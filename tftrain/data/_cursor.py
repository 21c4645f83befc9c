"""Cursors: positions of batches that do not follow from the step alone.

Each batch comes with a cursor, int64 `[2]`, to the beginning of the next batch:
the position in the source at which a window begins, and the number of elements
already taken from that window.
"""

from typing import Any

import tensorflow as tf

from tftrain.data import batching
from tftrain.data.sources import shuffle as shuffle_lib


def filtered(batches: tf.data.Dataset) -> tf.data.Dataset:
  """Returns (batch, cursor) for the (positions, examples) a filter kept."""
  zero = tf.constant(0, tf.int64)
  return batches.map(
    lambda positions, examples: (
      examples,
      tf.stack([positions[-1] + 1, zero]),
    )
  )


def bucketed(
  numbered: tf.data.Dataset,
  batcher: batching.Bucketed,
  rows: int,
  seed: int | None,
  skipped: int,
  *,
  drop: bool,
) -> tf.data.Dataset:
  """Returns (batch, cursor) for batches of similar length.

  Args:
    numbered: Dataset of (position, example).
    batcher: Sorts windows by length and cuts them into batches.
    rows: Rows of a batch.
    seed: Seed of the order of batches; None leaves them sorted.
    skipped: Batches to skip in the first window.
    drop: True drops batches that are not full.
  """
  windows = numbered.ragged_batch(rows * batcher.window)
  batches = windows.flat_map(
    lambda positions, examples: _with_cursor(
      batcher.split(
        examples,
        rows,
        None if seed is None else shuffle_lib.seed_of(seed, positions[0]),
      ),
      positions,
    )
  ).skip(skipped)
  if drop:
    return batches.filter(lambda batch, _: shuffle_lib.count(batch) == rows)
  return batches


def packed(
  numbered: tf.data.Dataset,
  batcher: batching.Packed,
  rows: int,
  seed: int | None,
  skipped: int,
  *,
  drop: bool,
) -> tf.data.Dataset:
  """Returns (batch, cursor) for rows of several sequences each.

  The arguments are those of `bucketed`, but `skipped` counts rows.
  """

  def pack(positions: tf.Tensor, examples: Any) -> tf.data.Dataset:
    found = batcher.collate(examples)
    if seed is not None:  # otherwise pieces of one text stay adjacent
      found = shuffle_lib.permuted_rows(
        found, shuffle_lib.seed_of(seed, positions[0])
      )
    return _with_cursor(tf.data.Dataset.from_tensor_slices(found), positions)

  return (
    numbered.ragged_batch(batcher.window)
    .flat_map(pack)
    .skip(skipped)
    .batch(rows, drop_remainder=drop)
    .map(lambda rows, cursors: (rows, cursors[-1]))
  )


def _with_cursor(
  elements: tf.data.Dataset, positions: tf.Tensor
) -> tf.data.Dataset:
  """Returns (element, cursor of the next element) for a window."""
  count, zero = elements.cardinality(), tf.constant(0, tf.int64)

  def after(number: tf.Tensor, element: Any) -> Any:
    inside = tf.stack([positions[0], number + 1])
    beyond = tf.stack([positions[-1] + 1, zero])
    return element, tf.where(number + 1 == count, beyond, inside)

  return elements.enumerate().map(after)

"""Batches of which the step alone does not say where they begin.

Each comes with a cursor, int64 `[2]`: where the next one begins, as a position
in the source and the number of elements already taken of the window that begins
there.
"""

from typing import Any

import tensorflow as tf

from tftrain.data import batching
from tftrain.data.sources import shuffle as shuffle_lib


def filtered(batches: tf.data.Dataset) -> tf.data.Dataset:
  """Of (positions, examples) of those that a filter kept."""
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
  """Batches of like length.

  Args:
    numbered: (position, example), one by one.
    batcher: Sorts and cuts windows of them.
    rows: Of a batch.
    seed: Of the order of batches; None leaves them sorted.
    skipped: How many to leave out of the first window.
    drop: Whether to leave out what is not a full batch.
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
  """Rows of several sequences each; arguments as for `bucketed`."""

  def pack(positions: tf.Tensor, examples: Any) -> tf.data.Dataset:
    found = batcher.collate(examples)
    if seed is not None:  # else pieces of one text follow each other
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
  """(element, where the one after it begins) of a window."""
  count, zero = elements.cardinality(), tf.constant(0, tf.int64)

  def after(number: tf.Tensor, element: Any) -> Any:
    inside = tf.stack([positions[0], number + 1])
    beyond = tf.stack([positions[-1] + 1, zero])
    return element, tf.where(number + 1 == count, beyond, inside)

  return elements.enumerate().map(after)

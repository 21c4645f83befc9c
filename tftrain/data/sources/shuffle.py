"""Shuffling: stateless permutations, holdout hashes and positions of examples.

An order is a function of (seed, epoch), evaluated index by index, so no
permutation is stored. The same examples come at the same step after any number
of restarts, on any hardware.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftrain.distribute import row_sharding


class Order(NamedTuple):
  """Order of the examples of a source.

  Attributes:
    seed: Seed of the shuffle; None leaves the examples in stored order.
    epochs: Number of epochs; None repeats without end.
    window: Records per shuffle window, for sources without random access.
  """

  seed: int | None = None
  epochs: int | None = 1
  window: int = 10_000


def words(seed: int) -> list[int]:
  """Returns a seed as the two int32 that stateless ops take."""
  return [seed & 0x7FFFFFFF, seed >> 31 & 0x7FFFFFFF]


def seed_of(seed: int, position: tf.Tensor) -> tf.Tensor:
  """Returns the seed for `position`, int32 `[2]`, for stateless ops."""
  folded = tf.random.experimental.stateless_fold_in(
    tf.constant(words(seed), tf.int32), position
  )
  return tf.cast(folded, tf.int32)


def positions(
  begin: tf.Tensor,
  size: int,
  stop: int | None,
  cut: row_sharding.Cut | None = None,
) -> tf.Tensor:
  """Returns `begin`, `begin + 1`, ..., int64 `[size]`, or fewer before `stop`.

  Without a `stop` the shape is static, which is preferable.

  Args:
    begin: First position.
    size: Maximum number of positions.
    stop: Position to end before; None has no end.
    cut: Selects the positions to return; None returns all.
  """
  if stop is None:
    first, end = (0, size) if cut is None else cut(size)
    return begin + tf.range(first, end, dtype=tf.int64)
  end = tf.minimum(begin + size, stop)
  if cut is None:
    return tf.range(begin, end)
  first, last = cut(end - begin)
  return tf.range(begin + first, begin + last)


def index_of(position: tf.Tensor, order: Order, examples: int) -> tf.Tensor:
  """Returns the example indices at positions, int64 `[n]`.

  Args:
    position: int64 `[n]`, counted on through the epochs.
    order: Order of the examples.
    examples: Number of examples of one epoch.
  """
  size = tf.constant(examples, tf.int64)
  epoch, index = position // size, position % size
  if order.seed is None:
    return index
  keys = tf.concat(  # one key per epoch, [n, 3]
    [
      tf.broadcast_to(words(order.seed), [tf.size(position), 2]),
      tf.cast(epoch, tf.int32)[:, None],
    ],
    axis=1,
  )
  return permuted(index, keys, size)


def permuted(index: tf.Tensor, key: tf.Tensor, size: Any) -> tf.Tensor:
  """Applies a random permutation of `size` numbers to `index`; returns int64.

  The permutation is a Feistel cipher over the index, as in
  tf.random.experimental.index_shuffle: each index costs the same.

  Args:
    index: `[n]`, each below `size`.
    key: int32 `[3]`, or one key for each index, `[n, 3]`.
    size: Number of permuted numbers.
  """
  last = tf.maximum(tf.cast(size, tf.int64), 1) - 1
  return tf.raw_ops.RandomIndexShuffle(
    index=index, seed=key, max_index=last, rounds=4
  )


def shuffled(
  windows: tf.data.Dataset,
  order: Order,
  epoch: tf.Tensor,
  skipped: Any = 0,
) -> tf.data.Dataset:
  """Returns an epoch with each window shuffled, without `skipped` examples.

  Windows share no state, so skipped windows are not shuffled at all.

  Args:
    windows: Examples of the epoch, `order.window` at a time.
    order: Order of the examples; without a seed nothing is shuffled.
    epoch: Number of the epoch.
    skipped: Examples to skip at the beginning.
  """
  begin, inside = skipped // order.window, skipped % order.window

  def permute(window: tf.Tensor, members: Any) -> Any:
    rows = count(members)
    index = tf.range(tf.where(window == begin, inside, 0), rows)
    if order.seed is not None:
      key = seed_of(order.seed, window)
      key = tf.concat([key, tf.cast(epoch, tf.int32)[None]], 0)
      index = permuted(index, key, rows)
    return tf.nest.map_structure(lambda leaf: tf.gather(leaf, index), members)

  return windows.skip(begin).enumerate(begin).map(permute)


def permuted_rows(batch: Any, seed: tf.Tensor) -> Any:
  """Shuffles the rows of a batch; `seed` is int32 `[2]`."""
  rows = count(batch)
  index = permuted(tf.range(rows), tf.concat([seed, [1]], 0), rows)
  return tf.nest.map_structure(lambda leaf: tf.gather(leaf, index), batch)


def apply_to_rows(
  rows: tf.Tensor, function: Callable[[tf.Tensor], Any], cut: row_sharding.Cut
) -> Any:
  """Applies `function` to the rows that `cut` selects, `[n]` to `[n, ...]`.

  If no rows are selected, reads one row and drops it: some decoders fail on
  empty input.
  """
  size = rows.shape[0]
  if size is not None and len(range(*cut(size))):
    first, end = cut(size)
    return function(rows[first:end])
  size = count(rows)
  first, end = (tf.cast(place, tf.int64) for place in cut(size))
  begin = tf.minimum(first, size - 1)
  made = function(rows[begin : tf.maximum(end, begin + 1)])
  return tf.nest.map_structure(lambda leaf: leaf[: end - first], made)


def count(batch: Any) -> tf.Tensor:
  """Returns the number of rows of a batch, int64; leaves may be ragged."""
  first = tf.nest.flatten(batch)[0]
  if isinstance(first, tf.RaggedTensor):
    return first.nrows()
  return tf.shape(first, tf.int64)[0]


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Returns the dataset without TensorFlow's autotuning and graph rewriting.

  Autotuning is not needed to use all cores, changes buffer sizes, and its
  thread has been seen to take a minute to end. Graph rewriting copies every
  tensor that the graph holds, such as a data set in memory, and gains little in
  a pipeline of batches.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  options.experimental_optimization.apply_default_optimizations = False
  return dataset.with_options(options)


# Hash buckets of examples: the resolution of a holdout share.
_SHARES = 1 << 20


def held_out(index: np.ndarray, share: float) -> np.ndarray:
  """Returns whether each index is held out, bool `[n]`.

  The choice is a hash of the index (splitmix64), so that it does not change
  when examples are added.

  Args:
    index: Integers `[n]`.
    share: Share of the indices to hold out, between 0 and 1.
  """
  mixed = index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
  mixed ^= mixed >> np.uint64(31)
  return mixed % np.uint64(_SHARES) < np.uint64(round(share * _SHARES))


def text_held_out(text: tf.Tensor, share: float) -> tf.Tensor:
  """Returns whether each text is held out, bool `[n]`.

  The choice is a hash of the text, so that equal texts stay together.
  """
  bucket = tf.strings.to_hash_bucket_fast(text, _SHARES)
  return bucket < round(share * _SHARES)

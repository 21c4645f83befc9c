"""In which order examples come: permutations that nothing has to store.

An order is a function of (seed, epoch), evaluated where it is needed. So the
same examples come at the same step however often a run is stopped, and whatever
it runs on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftrain.distribute import row_sharding


class Order(NamedTuple):
  """How a source is read.

  Attributes:
    seed: Of the shuffle; None leaves the examples as they are stored.
    epochs: How often all are read; None is for ever.
    window: Where records cannot be reached one by one, they are shuffled within
      so many.
  """

  seed: int | None = None
  epochs: int | None = 1
  window: int = 10_000


def words(seed: int) -> list[int]:
  """A seed as the two int32 that stateless ops take."""
  return [seed & 0x7FFFFFFF, seed >> 31 & 0x7FFFFFFF]


def seed_of(seed: int, position: tf.Tensor) -> tf.Tensor:
  """The seed of what is at `position`, int32 `[2]`, for stateless ops."""
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
  """`begin`, `begin + 1`, ..., so many, int64; fewer if `stop` comes first.

  Without a `stop` their number is known to the graph, which is worth something.

  Args:
    begin: The first.
    size: How many, at most.
    stop: Before which to end.
    cut: Which of these to return; None is all.
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
  """Which examples come at these positions of all epochs, int64 `[n]`."""
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
  """Where a random permutation of `size` numbers takes `index`, int64.

  A Feistel cipher over the index, as tf.random.experimental.index_shuffle uses:
  each point costs the same.

  Args:
    index: `[n]`, each below `size`.
    key: int32 `[3]`, or one for each index, `[n, 3]`.
    size: How many numbers are permuted.
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
  """One epoch without its first `skipped` examples, each window shuffled.

  Nothing is kept from one window to the next, so those that are skipped need
  not even be shuffled.

  Args:
    windows: The examples of the epoch, `order.window` at a time.
    order: Unless it has a seed, they stay as they are.
    epoch: Its number.
    skipped: How many to leave out.
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
  """The rows of a batch in another order; `seed` is int32 `[2]`."""
  rows = count(batch)
  index = permuted(tf.range(rows), tf.concat([seed, [1]], 0), rows)
  return tf.nest.map_structure(lambda leaf: tf.gather(leaf, index), batch)


def cut_out(
  rows: tf.Tensor, function: Callable[[tf.Tensor], Any], cut: row_sharding.Cut
) -> Any:
  """What `function` makes of the rows that `cut` says, `[n]` to `[n, ...]`.

  Where that is none it is given another, as not all that read can read none.
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
  """Rows of a batch whose leaves may be ragged, an int64."""
  first = tf.nest.flatten(batch)[0]
  if isinstance(first, tf.RaggedTensor):
    return first.nrows()
  return tf.shape(first, tf.int64)[0]


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """The same without TensorFlow's autotuning and rewriting.

  All cores work without the first, buffers stay as large as they were made, and
  ending the thread that tunes has been seen to take a minute. The second copies
  every tensor that the graph holds, such as a data set in memory, and has
  little to do where a pipeline is made of batches.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  options.experimental_optimization.apply_default_optimizations = False
  return dataset.with_options(options)


# Of all shares of the data, one in so many can be held out.
_SHARES = 1 << 20


def held_out(index: np.ndarray, share: float) -> np.ndarray:
  """Whether each index belongs to the `share` that is held out, bool `[n]`.

  By a hash (splitmix64), so that it stays where it is when others come.
  """
  mixed = index.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
  mixed ^= mixed >> np.uint64(31)
  return mixed % np.uint64(_SHARES) < np.uint64(round(share * _SHARES))


def text_held_out(text: tf.Tensor, share: float) -> tf.Tensor:
  """The same by content, so that equal texts stay together: bool `[n]`."""
  bucket = tf.strings.to_hash_bucket_fast(text, _SHARES)
  return bucket < round(share * _SHARES)

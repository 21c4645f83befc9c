"""Stacking: several batches of an iterator as tensors of a static shape."""

from typing import Any, NamedTuple

import tensorflow as tf

from tftrain.train import blocks

# Memory of batches that are stacked.
_MOST_BYTES = 2**24

# Batches that tf.data stacks, which costs a tenth of stacking them here. A stop
# waits for as many, where the data is slower than the steps.
_GROUP = 8


class Stacking(NamedTuple):
  """How the batches of an iterator are stacked.

  Attributes:
    most: Static number of batches, a multiple of `group`.
    group: Number of batches that an element of the iterator holds; 1 is a batch
      itself.
    is_endless: Whether the iterator is known to have no end.
  """

  most: int
  group: int
  is_endless: bool = False

  @classmethod
  def of(
    cls, element_spec: Any, *, one_by_one: bool, is_endless: bool = False
  ) -> 'Stacking':
    """Returns the Stacking of batches: at most 64, of at most 16 MB.

    Args:
      element_spec: Nest of `tf.TensorSpec` of one batch.
      one_by_one: Whether no batch may be read before it is needed.
      is_endless: Whether the iterator is known to have no end.
    """
    size = sum(
      int(spec.shape.num_elements()) * int(spec.dtype.size)
      for spec in tf.nest.flatten(element_spec)
    )
    most = max(1, min(blocks.STACKED, _MOST_BYTES // max(size, 1)))
    group = 1 if one_by_one else min(_GROUP, most)
    return cls(most // group * group, group, is_endless)

  def grouped(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the dataset whose iterator `take` reads."""
    return dataset if self.group == 1 else dataset.batch(self.group)

  def take(self, iterator: Any, n: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """Returns the next batches, stacked and filled up to `most`; traceable.

    Args:
      iterator: Iterator of `grouped`.
      n: Number of batches that are needed, int64; groups are read whole.

    Returns:
      (nest of tensors `[most, batch, ...]`, number of batches that were read:
      fewer than `n` at the end of the data).
    """
    specs = [
      tf.TensorSpec([self.group, *shape], spec.dtype)
      for spec, shape in self._leaves(iterator)
    ]
    arrays = [
      tf.TensorArray(
        spec.dtype, size=self.most // self.group, element_shape=spec.shape
      )
      for spec in specs
    ]

    def nothing() -> list[tf.Tensor]:
      zeros = [tf.zeros(spec.shape, spec.dtype) for spec in specs]
      return [*zeros, tf.zeros([], tf.int64)]

    def read(index: tf.Tensor, count: tf.Tensor, _: Any, arrays: Any) -> Any:
      more = tf.constant(True)
      if self.is_endless:  # an optional and a branch would cost as much again
        *leaves, size = self._filled(iterator.get_next())
      else:
        found = iterator.get_next_as_optional()
        more = found.has_value()
        *leaves, size = tf.cond(
          more, lambda: self._filled(found.get_value()), nothing
        )
      arrays = [
        array.write(index, leaf)
        for array, leaf in zip(arrays, leaves, strict=True)
      ]
      return index + 1, count + size, more, arrays

    start = tf.zeros([], tf.int32), tf.zeros_like(n), tf.constant(True), arrays
    _, count, _, arrays = tf.while_loop(
      lambda _, count, more, __: (count < n) & more, read, start
    )
    stacked = [
      tf.reshape(array.stack(), [self.most, *spec.shape[1:]])
      for array, spec in zip(arrays, specs, strict=True)
    ]
    return tf.nest.pack_sequence_as(iterator.element_spec, stacked), count

  def empty(self, iterator: Any) -> Any:
    """Returns tensors like those of `take`."""
    zeros = [
      tf.zeros([self.most, *shape], spec.dtype)
      for spec, shape in self._leaves(iterator)
    ]
    return tf.nest.pack_sequence_as(iterator.element_spec, zeros)

  def _leaves(self, iterator: Any) -> list[tuple[tf.TensorSpec, list[int]]]:
    """Returns (spec, shape in one batch) of each leaf."""
    before = 0 if self.group == 1 else 1
    return [
      (spec, spec.shape.as_list()[before:])
      for spec in tf.nest.flatten(iterator.element_spec)
    ]

  def _filled(self, element: Any) -> list[tf.Tensor]:
    """Returns the leaves, filled up to `group` batches, and their number."""
    leaves = tf.nest.flatten(element)
    if self.group == 1:
      return [*(leaf[tf.newaxis] for leaf in leaves), tf.ones([], tf.int64)]
    size = tf.shape(leaves[0], tf.int64)[0]

    def fill(leaf: tf.Tensor) -> tf.Tensor:
      after = [[0, self.group - size], *([[0, 0]] * (leaf.shape.rank - 1))]
      return tf.ensure_shape(tf.pad(leaf, after), [self.group, *leaf.shape[1:]])

    return [*map(fill, leaves), size]

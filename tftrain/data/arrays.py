"""Arrays: a pipeline of arrays in memory, shuffled by index."""

from collections.abc import Mapping
import copy
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import pipeline as pipeline_lib
from tftrain.data.sources import in_memory
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.distribute import row_sharding

# Up to this size the training graph gathers a batch: copying it costs less than
# waking the input thread (measured: a 1.3x faster step for 32 rows of 64
# floats). Larger batches are gathered ahead by tf.data on another core.
_IN_GRAPH_BYTES = 64 * 1024


class Arrays(pipeline_lib.Pipeline):
  """Batches gathered from arrays that share their first dimension.

  In training every epoch is one permutation of the examples, a function of
  (seed, epoch) computed index by index. Starting at step 1,000,000 therefore
  costs nothing, and there is no shuffle buffer. Batches straddle epoch ends:
  each batch has `batch_size` rows, and each example comes once per epoch. For
  evaluation (`training=False`) the data is one epoch in the order of the
  arrays, and the last batch holds the remaining rows.

  >>> digits = Arrays((images, labels), batch_size=32)

  Args:
    arrays: An array or a nest (tuple, dict) of arrays, `[examples, ...]`.
    batch_size: Rows of a global batch.
    training: True shuffles and repeats.
    epochs: Epochs until the data ends; None repeats without end in training.

  Raises:
    InputError: If there are no examples, the arrays differ in length, or
      `batch_size` or `epochs` is not a whole number of at least 1.
  """

  def __init__(
    self,
    arrays: Any,
    batch_size: int,
    *,
    training: bool = True,
    epochs: int | None = None,
  ):
    arrays = tf.nest.map_structure(np.asarray, arrays)
    examples = in_memory.count_rows(tf.nest.flatten(arrays))
    errors.check_count('batch_size', batch_size, errors.InputError)
    if epochs is not None:
      errors.check_count('epochs', epochs, errors.InputError)
    self._arrays = arrays
    self._training = training
    self._epochs = epochs
    self.batch_size = self._size = batch_size
    self.num_examples = self._examples = examples
    epochs = epochs if training else 1
    self.repeats = epochs is None
    self._total = None if epochs is None else epochs * self.num_examples
    self.num_steps = (
      None if self._total is None else -(-self._total // batch_size)
    )
    # Static shapes help, so the row count is static if every batch is full.
    full = self._total is None or self._total % batch_size == 0
    self._rows = batch_size if full else None
    self._share: row_sharding.Share | None = None
    self._note_spec(self._rows)
    self._in_memory: Any = None
    self._digest: str | None = None

  def batch(self, seed: int, step: tf.Tensor) -> Any:
    row_bytes = sum(leaf[:1].nbytes for leaf in tf.nest.flatten(self._arrays))
    if row_bytes * self.batch_size > _IN_GRAPH_BYTES:
      return None
    return self._gather(seed, step)

  def row_numbers(
    self, seed: int, step: tf.Tensor, n: tf.Tensor, most: int | tf.Tensor
  ) -> tf.Tensor:
    size = self._size
    if (
      isinstance(most, int) and most == 1 and self._rows is None
    ):  # the last batch, which is not full
      assert self._total is not None
      size = self._total % size
    begin = step * self._size
    order = shuffle_lib.Order(seed if self._training else None)
    numbers = shuffle_lib.index_of(
      begin + tf.range(tf.maximum(n, 1) * size), order, self._examples
    )
    filler = most * size - tf.size(numbers, tf.int64)
    padded = tf.pad(numbers, [[0, filler]])
    return tf.reshape(padded, [most, size])

  def rows(self, numbers: tf.Tensor) -> Any:
    self._load()
    return tf.nest.map_structure(
      lambda leaf: tf.gather(leaf, numbers), self._in_memory
    )

  def dataset(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
    stop = np.iinfo(np.int64).max if self.num_steps is None else self.num_steps
    batches = tf.data.Dataset.range(start_step, stop).map(
      lambda step: self._gather(seed, step),
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    return shuffle_lib.without_autotuning(batches.prefetch(2))

  def options(self) -> Mapping[str, Any]:
    return {'batch_size': self.batch_size}

  def with_options(self, **options: Any) -> 'Arrays':
    return Arrays(
      self._arrays,
      **{**self.options(), **options},
      training=self._training,
      epochs=self._epochs,
    )

  def part(self, share: row_sharding.Share) -> 'Arrays':
    self._load()  # once for both pipelines
    other = copy.copy(self)
    other._share = share
    first, end = share.of(self._size)
    other._note_spec(None if self._rows is None else end - first)
    return other

  def label_range(self) -> tuple[int, int] | None:
    if not isinstance(self._arrays, tuple) or len(self._arrays) < 2:
      return None
    labels = self._arrays[1]
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in 'iu':
      return None
    return int(labels.min()), int(labels.max())

  def fingerprint(self) -> Mapping[str, Any]:
    if self._digest is None:
      self._digest = in_memory.digest(tf.nest.flatten(self._arrays))
    return {
      'kind': 'arrays',
      'batch_size': self.batch_size,
      'training': self._training,
      'examples': self.num_examples,
      'sha256': self._digest,
    }

  def _note_spec(self, rows: int | None) -> None:
    self.element_spec = tf.nest.map_structure(
      lambda leaf: tf.TensorSpec((rows, *leaf.shape[1:]), leaf.dtype),
      self._arrays,
    )

  def _load(self) -> None:
    if self._in_memory is None:
      with tf.init_scope():
        self._in_memory = tf.nest.map_structure(tf.constant, self._arrays)

  def _gather(self, seed: int, step: tf.Tensor) -> Any:
    return self.rows(self._indices(seed, step))

  def _indices(self, seed: int, step: tf.Tensor) -> tf.Tensor:
    """Returns the example indices of the batch of `step`, int64 `[batch]`."""
    stop = self._total if self._rows is None else None
    position = shuffle_lib.positions(step * self._size, self._size, stop)
    order = shuffle_lib.Order(seed if self._training else None)

    def index_of(position: tf.Tensor) -> tf.Tensor:
      return shuffle_lib.index_of(position, order, self._examples)

    if self._share is None:
      return index_of(position)
    found: tf.Tensor = shuffle_lib.apply_to_rows(
      position, index_of, self._share.of
    )
    return found

"""What a source of examples is: the same examples in the same order, always."""

import abc
from collections.abc import Callable
from collections.abc import Mapping
import copy
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.distribute import row_sharding

FOR_EVER = np.iinfo(np.int64).max


class Source(abc.ABC):
  """Examples that can be read again, from anywhere.

  Attributes:
    element_spec: Nest of `tf.TensorSpec` of one example; a length that varies
      is None.
    num_examples: Examples in one epoch, None where unknown.
    lost: Records that were damaged and left out.
    endless: Whether there are no epochs.
    record_bytes: About how large a record is on disk, 0 where it does not
      matter.
  """

  element_spec: Any
  num_examples: int | None = None
  lost: int = 0
  endless: bool = False
  record_bytes: float = 0.0

  @abc.abstractmethod
  def chunks(
    self, size: int, order: shuffle_lib.Order, start: int = 0
  ) -> tf.data.Dataset:
    """Examples from position `start` on, `size` at a time.

    Positions count on through the epochs. The last chunk may be smaller. What
    varies in length is a `tf.RaggedTensor`.
    """

  def own(
    self, size: int, order: shuffle_lib.Order, start: int, cut: row_sharding.Cut
  ) -> tf.data.Dataset | None:
    """The same chunks, of each only the rows that `cut` says.

    A chunk of which no row is left comes with 0 rows. Nothing else is decoded.
    None where a source cannot do that.
    """
    del size, order, start, cut
    return None

  @abc.abstractmethod
  def fingerprint(self) -> Mapping[str, Any]:
    """What must be equal for the same examples to come (JSON)."""

  def shard(self, index: int, count: int) -> 'Source':
    """The examples of host `index` out of `count`."""
    del index
    raise errors.InputError(
      f'{type(self).__name__} cannot be dealt to {count} hosts; give each host '
      'a source of its own'
    )

  def split(self, holdout: float, subset: str) -> 'Source':
    """`subset` of the examples: `holdout`, that share of them, or `train`.

    Which example goes where depends on it alone, not on the others.
    """
    del holdout, subset
    raise errors.InputError(
      f'{type(self).__name__} cannot hold examples out; give training and '
      'evaluation a source each'
    )

  def diagnose(self) -> str | None:
    """Why reading failed: goes through all records up to the first bad one.

    Returns:
      One line, or None if they are in order.
    """
    return None


class Indexed(Source):
  """Examples that are found by index, as fast at one place as at another.

  Subclasses set `element_spec` and `_size`, the number of all examples.
  """

  _size: int
  # The indices of those that this source has, where it has not all of them.
  _chosen: np.ndarray | None = None

  @property
  def num_examples(self) -> int:  # type: ignore[override]
    return self._size if self._chosen is None else len(self._chosen)

  @abc.abstractmethod
  def lookup(self, index: tf.Tensor) -> Any:
    """The examples of these indices: int64 `[n]` to `[n, ...]`, in a graph."""

  def chunks(
    self, size: int, order: shuffle_lib.Order, start: int = 0
  ) -> tf.data.Dataset:
    return self._mapped(
      size, order, start, lambda index: self.lookup(self._chosen_of(index))
    )

  def own(
    self, size: int, order: shuffle_lib.Order, start: int, cut: row_sharding.Cut
  ) -> tf.data.Dataset | None:
    if type(self).chunks is not Indexed.chunks:
      return None

    def look_up(index: tf.Tensor) -> Any:
      return self.lookup(self._chosen_of(index))

    return self._mapped(
      size, order, start, lambda index: shuffle_lib.cut_out(index, look_up, cut)
    )

  def _mapped(
    self,
    size: int,
    order: shuffle_lib.Order,
    start: int,
    function: Callable[[tf.Tensor], Any],
  ) -> tf.data.Dataset:
    """What is made of the indices of each chunk, int64 `[n]`."""
    stop = FOR_EVER
    if order.epochs is not None:
      stop = order.epochs * self.num_examples
    full = stop == FOR_EVER or (stop - start) % size == 0

    def chunk(begin: tf.Tensor) -> Any:
      position = shuffle_lib.positions(begin, size, None if full else stop)
      return function(shuffle_lib.index_of(position, order, self.num_examples))

    return tf.data.Dataset.range(start, stop, size).map(
      chunk, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )

  def _chosen_of(self, index: tf.Tensor) -> tf.Tensor:
    return index if self._chosen is None else tf.gather(self._chosen, index)

  def shard(self, index: int, count: int) -> 'Indexed':
    return self._only(np.arange(index, self.num_examples, count))

  def split(self, holdout: float, subset: str) -> 'Indexed':
    index = np.arange(self._size) if self._chosen is None else self._chosen
    out = shuffle_lib.held_out(index, holdout)
    return self._only(np.flatnonzero(out == (subset == 'holdout')))

  def _only(self, positions: np.ndarray) -> 'Indexed':
    if not len(positions):
      raise errors.InputError(
        f'{type(self).__name__}: none of its {self.num_examples} examples are '
        'left; hold out another share, or take fewer hosts'
      )
    part = copy.copy(self)
    part._chosen = (
      positions if self._chosen is None else self._chosen[positions]
    )
    return part

"""Source: the interface of repeatable, seekable sources of examples."""

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
  """Examples that can be read repeatedly, from any position.

  Attributes:
    element_spec: Nest of `tf.TensorSpec` of one example; a length that varies
      is None.
    num_examples: Examples in one epoch; None if unknown.
    lost: Damaged records that were left out.
    endless: True if the source has no epochs.
    record_bytes: Approximate size of a record on disk; 0 if it does not matter.
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
    """Returns the examples from position `start` on, `size` at a time.

    Positions count on through the epochs. The last chunk may be smaller.
    Features of varying length are `tf.RaggedTensor`s.
    """

  def own(
    self, size: int, order: shuffle_lib.Order, start: int, cut: row_sharding.Cut
  ) -> tf.data.Dataset | None:
    """Returns the same chunks, with only the rows that `cut` selects.

    Other rows are not decoded. A chunk without selected rows has 0 rows. The
    result is None if the source cannot select rows.
    """
    del size, order, start, cut
    return None

  @abc.abstractmethod
  def fingerprint(self) -> Mapping[str, Any]:
    """Returns JSON that identifies the examples and their order."""

  def shard(self, index: int, count: int) -> 'Source':
    """Returns the examples of host `index` out of `count`."""
    del index
    raise errors.InputError(
      f'{type(self).__name__} cannot be dealt to {count} hosts; give each host '
      'a source of its own'
    )

  def split(self, holdout: float, subset: str) -> 'Source':
    """Returns the held-out or the training part of the examples.

    The part of an example depends on that example alone.

    Args:
      holdout: Share of the examples to hold out, between 0 and 1.
      subset: `train` or `holdout`.
    """
    del holdout, subset
    raise errors.InputError(
      f'{type(self).__name__} cannot hold examples out; give training and '
      'evaluation a source each'
    )

  def diagnose(self) -> str | None:
    """Returns the reason that reading failed, in one line.

    Checks all records up to the first bad one; returns None if all are valid.
    """
    return None


class Indexed(Source):
  """Source with random access by index.

  Subclasses set `element_spec` and `_size`, the number of all examples.
  """

  _size: int
  # Indices of the examples of this part of the source; None is all.
  _chosen: np.ndarray | None = None

  @property
  def num_examples(self) -> int:  # type: ignore[override]
    return self._size if self._chosen is None else len(self._chosen)

  @abc.abstractmethod
  def lookup(self, index: tf.Tensor) -> Any:
    """Returns the examples of `index`, int64 `[n]`, in a graph: `[n, ...]`."""

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
      size,
      order,
      start,
      lambda index: shuffle_lib.apply_to_rows(index, look_up, cut),
    )

  def _mapped(
    self,
    size: int,
    order: shuffle_lib.Order,
    start: int,
    function: Callable[[tf.Tensor], Any],
  ) -> tf.data.Dataset:
    """Applies `function` to the indices of each chunk, int64 `[n]`."""
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

"""Batches of sequences: as they are, padded, sorted by length, or packed.

A batcher takes a window of examples and makes batches of them, or rows that are
then batched. It keeps nothing from one window to the next, so that a run can go
on from any.
"""

import abc
from collections.abc import Sequence
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import shuffle as shuffle_lib


class Batcher(abc.ABC):
  """How examples become batches."""

  @abc.abstractmethod
  def collate(self, examples: Any) -> Any:
    """From examples, ragged where lengths vary, to a batch."""


class Ragged(Batcher):
  """Leaves what varies in length as `tf.RaggedTensor`s."""

  def collate(self, examples: Any) -> Any:
    return examples


class Padded(Batcher):
  """Pads what varies in length at its end.

  Args:
    length: To this; None pads to the longest of each batch. A fixed length
      keeps shapes static, as XLA wants them.
    value: With this.
    too_long: What to do with the longer ones: `error` or `truncate`.
  """

  def __init__(
    self,
    length: int | None = None,
    *,
    value: float = 0,
    too_long: str = 'error',
  ):
    _choose('Padded.too_long', too_long, ('error', 'truncate'))
    self.length = length
    self.value = value
    self.too_long = too_long

  def collate(self, examples: Any) -> Any:
    def pad(leaf: Any) -> Any:
      if not isinstance(leaf, tf.RaggedTensor):
        return leaf
      if self.length is not None and self.too_long == 'error':
        leaf = _limited(leaf, self.length, 'Padded.length')
      return padded(leaf, self.length, self.value)

    return tf.nest.map_structure(pad, examples)


class Bucketed(Batcher):
  """Puts examples of like length together, padded to one of few lengths.

  Windows of `window` batches are sorted by length and cut into batches, which
  come in random order. So all batches have the same number of rows and no
  example is left out; a batch is as long as the boundary above its longest.

  Args:
    boundaries: Lengths to pad to, ascending.
    window: How many batches are sorted together.
    value: What to pad with.
    too_long: What to do with what is longer than the last boundary: `error` or
      `truncate`.
    by: Which feature's length counts; None where there is one that varies.
  """

  def __init__(
    self,
    boundaries: Sequence[int],
    *,
    window: int = 100,
    value: float = 0,
    too_long: str = 'error',
    by: str | None = None,
  ):
    _choose('Bucketed.too_long', too_long, ('error', 'truncate'))
    bounds = list(boundaries)
    if not bounds or bounds != sorted(set(bounds)) or bounds[0] < 1:
      raise errors.ConfigError(
        f'Bucketed.boundaries = {boundaries!r}; give ascending lengths, such '
        'as [16, 32, 64]'
      )
    self.boundaries = bounds
    self.window = window
    self.value = value
    self.too_long = too_long
    self.by = by

  def collate(self, examples: Any) -> Any:
    """One batch, padded to the boundary above its longest."""
    lengths = self._lengths(examples)
    longest = tf.reduce_max(lengths)
    bounds = tf.constant(self.boundaries, tf.int64)
    index = tf.searchsorted(bounds, longest[None])[0]
    target = tf.gather(bounds, tf.minimum(index, len(self.boundaries) - 1))

    def pad(leaf: Any) -> Any:
      if not isinstance(leaf, tf.RaggedTensor):
        return leaf
      if self.too_long == 'error':
        leaf = _limited(leaf, self.boundaries[-1], 'Bucketed.boundaries[-1]')
      return padded(leaf, target, self.value)

    return tf.nest.map_structure(pad, examples)

  def split(
    self, examples: Any, batch_size: int, seed: tf.Tensor | None
  ) -> tf.data.Dataset:
    """The batches of a window.

    Args:
      examples: All of them.
      batch_size: Rows of each; the last may have fewer.
      seed: int32 `[2]`, of the order of the batches; None leaves them sorted.
    """
    lengths = self._lengths(examples)
    sorted_index = tf.argsort(lengths, stable=True)
    count = -(-tf.size(lengths, tf.int64) // batch_size)

    def batch(number: tf.Tensor) -> Any:
      if seed is not None:
        number = shuffle_lib.permuted(number, tf.concat([seed, [1]], 0), count)
      begin = tf.cast(number, tf.int32) * batch_size
      index = sorted_index[begin : begin + batch_size]
      return self.collate(
        tf.nest.map_structure(lambda leaf: tf.gather(leaf, index), examples)
      )

    return tf.data.Dataset.range(count).map(batch)

  def _lengths(self, examples: Any) -> tf.Tensor:
    if self.by is not None:
      return examples[self.by].row_lengths()
    leaves = [
      leaf
      for leaf in tf.nest.flatten(examples)
      if isinstance(leaf, tf.RaggedTensor)
    ]
    if not leaves:
      raise errors.InputError(
        'Bucketed: no feature varies in length; give a spec such as '
        "'int64[?]', or leave the batcher out"
      )
    return tf.reduce_max([leaf.row_lengths() for leaf in leaves], 0)


class Packed(Batcher):
  """Puts several sequences into each row, so that little is padding.

  Every feature of an example must vary in length, all alike. For a feature
  `ids`, rows have `ids`, `ids_segment_ids` (1, 2, ... and 0 for padding) and
  `ids_positions` (0, 1, ... within each sequence), as in seqio (Raffel et al.
  2020). Attention must not cross segments.

  Args:
    length: Of a row.
    window: How many examples are packed together, first fit; they are in
      memory at once. In training the rows of a window are shuffled.
    too_long: What to do with the longer ones: `error`, `truncate`, or `split`,
      which makes sequences of `length` and a rest of each.
  """

  def __init__(
    self, length: int, *, window: int = 1000, too_long: str = 'error'
  ):
    _choose('Packed.too_long', too_long, ('error', 'truncate', 'split'))
    if length < 1 or window < 1:
      raise errors.ConfigError(
        f'Packed(length={length}, window={window}); both must be at least 1'
      )
    self.length = length
    self.window = window
    self.too_long = too_long

  def collate(self, examples: Any) -> Any:
    """All rows of a window, `[rows, length]`, in order."""
    if not isinstance(examples, dict) or not all(
      isinstance(leaf, tf.RaggedTensor) for leaf in examples.values()
    ):
      raise errors.InputError(
        "Packed: every feature must vary in length ('int64[?]'); drop the "
        'others in Examples.map'
      )
    first, *others = [leaf.row_lengths() for leaf in examples.values()]
    checks = [
      tf.debugging.assert_equal(first, other, _UNEQUAL) for other in others
    ]
    with tf.control_dependencies(checks):
      examples = {n: self._shortened(leaf) for n, leaf in examples.items()}
    lengths = next(iter(examples.values())).row_lengths()
    place, rows = tf.numpy_function(
      self._places, [lengths], (tf.int64, tf.int64), stateful=False
    )
    place.set_shape([None, 3])  # row, first column, segment of each
    rows.set_shape([])
    found = {}
    for name, leaf in examples.items():
      found.update(self._laid_out(name, leaf, place, rows))
    return found

  def _shortened(self, leaf: tf.RaggedTensor) -> tf.RaggedTensor:
    if self.too_long == 'error':
      return _limited(leaf, self.length, 'Packed.length')
    if self.too_long == 'truncate':
      return leaf[:, : self.length]
    lengths = leaf.row_lengths()
    pieces = tf.maximum((lengths + self.length - 1) // self.length, 1)
    number = tf.ragged.range(pieces).flat_values
    whole = tf.repeat(lengths, pieces)
    cut = tf.minimum(whole - number * self.length, self.length)
    return tf.RaggedTensor.from_row_lengths(leaf.flat_values, cut)

  def _places(self, lengths: np.ndarray) -> tuple[np.ndarray, np.int64]:
    """Row, first column and segment of each sequence, by first fit."""
    used = np.zeros(len(lengths) + 1, np.int64)
    segments = np.zeros(len(lengths) + 1, np.int64)
    places = np.zeros((len(lengths), 3), np.int64)
    rows = 0
    for number, length in enumerate(lengths):
      if not length:
        continue
      fits = used[:rows] + length <= self.length
      row = int(np.argmax(fits)) if fits.any() else rows
      rows = max(rows, row + 1)
      segments[row] += 1
      places[number] = row, used[row], segments[row]
      used[row] += length
    return places, np.int64(rows)

  def _laid_out(
    self, name: str, leaf: tf.RaggedTensor, place: tf.Tensor, rows: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    lengths = leaf.row_lengths()
    row, column, segment = tf.unstack(place, axis=1)
    position = tf.ragged.range(lengths).flat_values
    index = tf.stack(
      [tf.repeat(row, lengths), tf.repeat(column, lengths) + position], 1
    )
    shape = tf.stack([rows, self.length])

    def scatter(values: tf.Tensor) -> tf.Tensor:
      laid = tf.scatter_nd(index, values, shape)
      return tf.ensure_shape(laid, [None, self.length])

    segments = tf.repeat(segment, lengths)
    return {
      name: scatter(leaf.flat_values),
      f'{name}_segment_ids': scatter(tf.cast(segments, tf.int32)),
      f'{name}_positions': scatter(tf.cast(position, tf.int32)),
    }


def padded(leaf: tf.RaggedTensor, length: Any, value: float) -> tf.Tensor:
  """A dense `[rows, length, ...]`, cut or filled up at the end."""
  inner = leaf.shape[2:].as_list()
  shape: Any = None
  if tf.is_tensor(length):
    shape = tf.stack([-1, length, *inner])
  elif length is not None:
    shape = [None, length, *inner]
  filler = '' if leaf.dtype == tf.string else tf.cast(value, leaf.dtype)
  return leaf.to_tensor(filler, shape=shape)


_TOO_LONG = 'a sequence is longer than'
_UNEQUAL = 'Packed: the features of an example differ in length'


def explain(text: str) -> str | None:
  """The sentence for what a check of this file says in TensorFlow's words."""
  found = re.search(rf'\[({_TOO_LONG} [^:]*):\] \[(\d+)\]', text)
  if found:
    return f"{found[1]}: {found[2]}; raise it, or set too_long='truncate'"
  if _UNEQUAL in text:
    return f'{_UNEQUAL}; make them alike, or drop one in Examples.map'
  return None


def _limited(leaf: tf.RaggedTensor, length: int, what: str) -> tf.RaggedTensor:
  """The same, with a check that no row is longer."""
  longest = tf.reduce_max(leaf.row_lengths())
  check = tf.debugging.Assert(
    longest <= length, [f'{_TOO_LONG} {what} = {length}:', longest]
  )
  with tf.control_dependencies([check]):  # whatever is made of it comes after
    values, lengths = tf.identity(leaf.values), tf.identity(leaf.row_lengths())
  return tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)


def _choose(name: str, value: str, choices: Sequence[str]) -> None:
  if value not in choices:
    raise errors.ConfigError(
      f'{name} = {value!r}; choose one of {", ".join(choices)}'
    )

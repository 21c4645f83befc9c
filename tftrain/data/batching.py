"""Batching of sequences: ragged, padded, bucketed by length, or packed.

A batcher turns a window of examples into batches, or into rows to be batched.
Batchers keep no state between windows, so a run can resume at any window.
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
  """Abstract base of batchers, which turn examples into batches."""

  @abc.abstractmethod
  def collate(self, examples: Any) -> Any:
    """Makes a batch of examples, which are ragged where lengths vary."""


class Ragged(Batcher):
  """Keeps features of varying length as `tf.RaggedTensor`s."""

  def collate(self, examples: Any) -> Any:
    return examples


class Padded(Batcher):
  """Pads features of varying length at their end.

  Args:
    length: Length to pad to; None pads to the longest sequence of each batch.
      A fixed length keeps shapes static, as XLA needs them.
    value: Padding value; strings are padded with ''.
    too_long: Treatment of sequences longer than `length`: `error` or
      `truncate`.

  Raises:
    ConfigError: If `too_long` is unknown.
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
  """Groups examples of similar length, padded to one of a few lengths.

  Windows of `window` batches are sorted by length and cut into batches. The
  batches of a window come in random order if the data is shuffled. All batches
  have the same number of rows and no example is left out. A batch is padded to
  the smallest boundary that fits its longest example.

  Args:
    boundaries: Lengths to pad to, ascending.
    window: Number of batches that are sorted together.
    value: Padding value; strings are padded with ''.
    too_long: Treatment of sequences longer than the last boundary: `error` or
      `truncate`.
    by: Feature whose length counts; None takes the longest feature of each
      example.

  Raises:
    ConfigError: If `boundaries` are not ascending lengths, or `too_long` is
      unknown.
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
    """Returns one batch, padded to the boundary that fits its longest."""
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
    """Returns the batches of a window.

    Args:
      examples: All examples of the window.
      batch_size: Rows of a batch; the last batch may have fewer.
      seed: int32 `[2]`, seed of the order of batches; None leaves them sorted.
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
  """Packs several sequences into each row, which saves padding.

  All features of an example must vary in length, and have the same length. For
  a feature `ids`, rows have `ids`, `ids_segment_ids` (1, 2, ... and 0 for
  padding) and `ids_positions` (0, 1, ... within each sequence), as in seqio
  (Raffel et al. 2020). Attention must not cross segments.

  Args:
    length: Length of a row.
    window: Number of examples that are packed together, by first fit; they are
      in memory at once. In training the rows of a window are shuffled.
    too_long: Treatment of sequences longer than `length`: `error`, `truncate`,
      or `split` into sequences of `length` and a remainder.

  Raises:
    ConfigError: If `length` or `window` is below 1, or `too_long` is unknown.
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
    """Returns all rows of a window, `[rows, length]`, in order."""
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
    """Places sequences by first fit.

    Returns:
      (row, first column, segment) of each sequence, `[n, 3]`; number of rows.
    """
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
  """Returns a dense `[rows, length, ...]`, cut or padded at the end."""
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
  """Returns a message if `text` quotes an assertion of this module."""
  found = re.search(rf'\[({_TOO_LONG} [^:]*):\] \[(\d+)\]', text)
  if found:
    return f"{found[1]}: {found[2]}; raise it, or set too_long='truncate'"
  if _UNEQUAL in text:
    return f'{_UNEQUAL}; make them alike, or drop one in Examples.map'
  return None


def _limited(leaf: tf.RaggedTensor, length: int, what: str) -> tf.RaggedTensor:
  """Returns the leaf, with an assertion that no row exceeds `length`."""
  longest = tf.reduce_max(leaf.row_lengths())
  check = tf.debugging.Assert(
    longest <= length, [f'{_TOO_LONG} {what} = {length}:', longest]
  )
  with tf.control_dependencies([check]):  # runs before any use of the leaf
    values, lengths = tf.identity(leaf.values), tf.identity(leaf.row_lengths())
  return tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)


def _choose(name: str, value: str, choices: Sequence[str]) -> None:
  if value not in choices:
    raise errors.ConfigError(
      f'{name} = {value!r}; choose one of {", ".join(choices)}'
    )

"""Sources in memory: arrays, or Python objects with random access."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
import zipfile

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import _numpy_examples
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import source as source_lib
from tftrain.platform import hashing


class InMemory(source_lib.Indexed):
  """Arrays as a source, for mapping, filtering, mixing or packing.

  `Arrays` is faster for plain batches.

  Args:
    arrays: An array or a nest (tuple, dict) of arrays, `[examples, ...]`;
      `tf.RaggedTensor`s if lengths vary.

  Raises:
    InputError: If there are no examples, or the arrays differ in length.
  """

  def __init__(self, arrays: Any):
    self._arrays = tf.nest.map_structure(_as_array, arrays)
    self._size = count_rows(tf.nest.flatten(self._arrays))
    self.element_spec = tf.nest.map_structure(
      lambda array: tf.TensorSpec(array.shape[1:], tf.as_dtype(array.dtype)),
      self._arrays,
    )
    self._tensors: Any = None
    self._digest: str | None = None

  def lookup(self, index: tf.Tensor) -> Any:
    if self._tensors is None:
      with tf.init_scope():
        self._tensors = tf.nest.map_structure(_as_tensor, self._arrays)
    return tf.nest.map_structure(
      lambda leaf: tf.gather(leaf, index), self._tensors
    )

  def fingerprint(self) -> Mapping[str, Any]:
    if self._digest is None:
      self._digest = digest(tf.nest.flatten(self._arrays))
    return {'kind': 'memory', 'sha256': self._digest}


UNREADABLE = (
  OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile
)  # fmt: skip


class Npz(InMemory):
  """The arrays of an .npz file, by their names.

  Args:
    path: The file.

  Raises:
    InputError: If the file cannot be read, or its arrays differ in length.
  """

  def __init__(self, path: str | pathlib.Path):
    try:
      with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files}
    except UNREADABLE as error:
      raise errors.InputError(
        f'{path} cannot be read as .npz: {errors.one_line(error)}; write it '
        'with np.savez(path, name=array)'
      ) from error
    super().__init__(arrays)


class RandomAccess(source_lib.Indexed):
  """Examples of any Python object with `len(data)` and `data[index]`.

  `data[index]` must always return the same example, on any thread. Python makes
  one example at a time; the other sources are faster.

  Args:
    data: The object; an example is a nest of arrays, numbers or texts.
    features: Name -> spec as for `TFRecords`, needed if lengths vary; None
      takes dtypes and shapes from the first example.
    name: Name in messages and fingerprints; None is the type of `data`.

  Raises:
    InputError: If `data` is empty, or cannot be indexed.
  """

  def __init__(
    self,
    data: Any,
    features: Mapping[str, str] | None = None,
    *,
    name: str | None = None,
  ):
    self._name = name or type(data).__name__
    for needed in ('__getitem__', '__len__'):
      if not hasattr(data, needed):
        raise errors.InputError(
          f'{self._name} has no {needed}; give a list, or a class that has '
          '__len__ and __getitem__, or use Generator'
        )
    self._data = data
    self._size = len(data)
    if not self._size:
      raise errors.InputError(f'{self._name} has 0 examples')
    self._failure: str | None = None
    self.element_spec = _numpy_examples.spec_for(features, data[0])

  def lookup(self, index: tf.Tensor) -> Any:
    return _numpy_examples.lookup(self._fetch, index, self.element_spec)

  def fingerprint(self) -> Mapping[str, Any]:
    return {'kind': 'random access', 'name': self._name, 'size': self._size}

  def diagnose(self) -> str | None:
    return self._failure

  def _fetch(self, index: np.ndarray) -> Sequence[Any]:
    return [self._example(int(i)) for i in index]

  def _example(self, index: int) -> Any:
    try:
      return _numpy_examples.fitted(self._data[index], self.element_spec)
    except Exception as error:  # kept: TensorFlow raises a dump of it
      self._failure = f'{self._name}[{index}]: {errors.one_line(error)}'
      raise


def read_all(source: source_lib.Source) -> Any:
  """Returns all examples of a source in stored order, a nest of arrays."""
  chunks = list(
    shuffle_lib.without_autotuning(source.chunks(1024, shuffle_lib.Order()))
  )
  return tf.nest.map_structure(
    lambda *leaves: _settled(tf.concat(leaves, 0)), *chunks
  )


def _settled(leaf: Any) -> Any:
  return leaf if isinstance(leaf, tf.RaggedTensor) else leaf.numpy()


def count_rows(arrays: Sequence[Any]) -> int:
  """Returns the number of rows that all arrays share.

  Raises:
    InputError: If the arrays are empty, differ in length, or hold objects.
  """
  if not arrays or any(not array.shape for array in arrays):
    raise errors.InputError('Arrays needs arrays of shape [examples, ...]')
  lengths = [int(array.shape[0]) for array in arrays]
  if len(set(lengths)) > 1:
    raise errors.InputError(
      f'the arrays have {", ".join(map(str, lengths))} rows; give each the '
      'same number of examples'
    )
  if lengths[0] == 0:
    raise errors.InputError(
      'the arrays have 0 examples; check the path or filter they came from'
    )
  if any(_holds_objects(array) for array in arrays):
    raise errors.InputError(
      'an array has dtype object (rows of unequal length?); pad the rows or '
      'convert it to a numeric or string dtype'
    )
  return lengths[0]


def _holds_objects(array: Any) -> bool:
  """Returns whether an array holds other values than numbers and strings."""
  if isinstance(array, tf.RaggedTensor) or array.dtype != object:
    return False
  return not all(isinstance(entry, bytes | str) for entry in array.flat)


def digest(arrays: Sequence[Any]) -> str:
  """Returns the SHA-256 of arrays and ragged tensors."""
  leaves = tf.nest.flatten(list(arrays), expand_composites=True)
  return hashing.arrays_digest(
    (str(index), np.asarray(leaf)) for index, leaf in enumerate(leaves)
  )


def _as_array(leaf: Any) -> Any:
  return leaf if isinstance(leaf, tf.RaggedTensor) else np.asarray(leaf)


def _as_tensor(leaf: Any) -> Any:
  return leaf if isinstance(leaf, tf.RaggedTensor) else tf.constant(leaf)

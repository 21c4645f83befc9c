"""Feature specs as text: `uint8[28,28,1]`, `int64`, `int64[?]`, `string`."""

from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftrain import errors

# The dtypes of a tf.train.Example; all others are stored as one of these.
_LISTS = {
  'int64': tf.int64,
  'float32': tf.float32,
  'string': tf.string,
}
_AS_INT64 = ('int8', 'int16', 'int32', 'uint16', 'uint32', 'bool')
_AS_BYTES = ('uint8', 'float16', 'bfloat16', 'float64', 'uint64')
_SPEC = re.compile(r'(\w+)(?:\[( *(?:\?|\d+)(?: *, *\d+)* *)\])?')


class Feature(NamedTuple):
  """Dtype and shape of one feature of an example.

  Attributes:
    dtype: Dtype of the tensor.
    shape: Shape in one example; None is a length that varies, which only the
      first dimension may do.
  """

  dtype: tf.DType
  shape: tuple[int | None, ...] = ()

  @property
  def varies(self) -> bool:
    return None in self.shape

  @property
  def inner(self) -> int:
    """The entries of one example, or of one step if the length varies."""
    return math.prod(size for size in self.shape if size is not None)

  @property
  def stored(self) -> tf.DType:
    """The dtype of the tf.train.Example list that stores the feature."""
    if self.dtype.name in _AS_INT64:
      return tf.int64
    return _LISTS.get(self.dtype.name, tf.string)

  @property
  def is_raw(self) -> bool:
    """True if the feature is stored as its bytes, in one string."""
    return self.dtype.name in _AS_BYTES

  def __str__(self) -> str:
    if not self.shape:
      return str(self.dtype.name)
    sizes = ','.join('?' if size is None else str(size) for size in self.shape)
    return f'{self.dtype.name}[{sizes}]'


def parse(features: Mapping[str, str | Feature]) -> dict[str, Feature]:
  """Returns name -> Feature for name -> `dtype[shape]`.

  Raises:
    ConfigError: If `features` is empty, or a spec is invalid.
  """
  if not isinstance(features, Mapping) or not features:
    raise errors.ConfigError(
      f"features = {features!r}; give {{name: spec}}, such as {{'image': "
      "'uint8[28,28,1]', 'label': 'int64'}"
    )
  return {
    name: spec if isinstance(spec, Feature) else _parse_one(name, spec)
    for name, spec in features.items()
  }


def _parse_one(name: str, spec: Any) -> Feature:
  wrong = f'features[{name!r}] = {spec!r}'
  found = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
  known = [*_LISTS, *_AS_INT64, *_AS_BYTES]
  if not found or found[1] not in known:
    raise errors.ConfigError(
      f"{wrong}; write 'int64', 'float32[128]' or, where the length varies, "
      f"'int64[?]'; dtypes are {', '.join(known)}"
    )
  sizes = found[2].split(',') if found[2] else []
  shape = tuple(None if size.strip() == '?' else int(size) for size in sizes)
  feature = Feature(tf.as_dtype(found[1]), shape)
  if 0 in shape:
    raise errors.ConfigError(f'{wrong}; no size may be 0')
  if feature.varies and feature.is_raw:
    raise errors.ConfigError(
      f'{wrong}; {found[1]} is stored as bytes, whose length cannot vary; '
      "use int64[?] or float32[?], or 'string' and decode it in map"
    )
  return feature


def of_example(example: Mapping[str, Any]) -> dict[str, Feature]:
  """Returns the dtypes and shapes of one example."""
  arrays = {name: np.asarray(value) for name, value in example.items()}
  return parse(
    texts(
      {n: Feature(dtype_of(array), array.shape) for n, array in arrays.items()}
    )
  )


def dtype_of(array: np.ndarray) -> tf.DType:
  text = array.dtype.kind in 'OSU'
  return tf.string if text else tf.as_dtype(array.dtype)


def texts(features: Mapping[str, Feature]) -> dict[str, str]:
  """Returns the specs as text; the reverse of `parse`."""
  return {name: str(feature) for name, feature in features.items()}


def element_spec(features: Mapping[str, Feature]) -> dict[str, Any]:
  """Returns the spec of one example."""
  return {
    name: tf.TensorSpec(feature.shape, feature.dtype)
    for name, feature in features.items()
  }


def of_batch(spec: Any, rows: int | None = None) -> Any:
  """Returns the spec of `rows` examples; None is any number of rows."""

  def add_rows(leaf: tf.TypeSpec) -> tf.TypeSpec:
    shape = leaf.shape.as_list()
    if None in shape:
      return tf.RaggedTensorSpec([rows, *shape], leaf.dtype, ragged_rank=1)
    return tf.TensorSpec([rows, *shape], leaf.dtype)

  return tf.nest.map_structure(add_rows, spec)

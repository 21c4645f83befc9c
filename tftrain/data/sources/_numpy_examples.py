"""Examples made in Python: checks them and stacks them into tensors."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import feature_spec


def varies(leaf: tf.TensorSpec) -> bool:
  return None in leaf.shape.as_list()


def spec_of(example: Any) -> Any:
  """Returns the dtypes and shapes of one example, a nest of `tf.TensorSpec`.

  Dictionaries and tuples are structure; a list is an array.
  """
  if isinstance(example, Mapping):
    return {name: spec_of(part) for name, part in example.items()}
  if isinstance(example, tuple):
    return tuple(spec_of(part) for part in example)
  array = np.asarray(example)
  return tf.TensorSpec(array.shape, feature_spec.dtype_of(array))


def spec_for(features: Mapping[str, str] | None, first: Any) -> Any:
  """Returns the spec that the user gives, or that of the first example."""
  if features:
    return feature_spec.element_spec(feature_spec.parse(features))
  return spec_of(first)


def lookup(
  make: Callable[[np.ndarray], Sequence[Any]], argument: tf.Tensor, spec: Any
) -> Any:
  """Calls `make` from a graph: `[n]` in, n examples out.

  Args:
    make: Returns examples of `spec`, one for each entry of `argument`.
    argument: Tensor `[n]`, passed to `make` as an array.
    spec: Nest of `tf.TensorSpec` of one example.

  Returns:
    A nest of `[n, ...]`, ragged where a length varies.
  """
  leaves = tf.nest.flatten(spec)
  dtypes: list[tf.DType] = []
  for leaf in leaves:
    dtypes += [leaf.dtype, tf.int64] if varies(leaf) else [leaf.dtype]

  def columns(values: np.ndarray) -> list[np.ndarray]:
    return _columns(make(values), spec)

  made = iter(tf.numpy_function(columns, [argument], dtypes, stateful=False))
  found = []
  for leaf in leaves:
    values = next(made)
    if varies(leaf):
      values.set_shape([None, *leaf.shape[1:]])
      values = tf.RaggedTensor.from_row_lengths(values, next(made))
    else:
      values.set_shape([argument.shape[0], *leaf.shape])
    found.append(values)
  return tf.nest.pack_sequence_as(spec, found)


def fitted(example: Any, spec: Any, name: str = '') -> Any:
  """Returns the example as arrays that match `spec`.

  Args:
    example: Nest of values that NumPy converts to arrays.
    spec: Nest of `tf.TensorSpec`.
    name: Name in messages, if the example is a part of another.

  Raises:
    InputError: If `example` does not match `spec`.
  """
  if isinstance(spec, Mapping):
    there = example if isinstance(example, Mapping) else {}
    for key in spec:
      if key not in there:
        raise errors.InputError(
          f'it has no feature {key!r}; it has {", ".join(there) or "none"}'
        )
    return {key: fitted(there[key], spec[key], key) for key in spec}
  if isinstance(spec, tuple):
    parts = example if isinstance(example, tuple | list) else [example]
    if len(parts) != len(spec):
      raise errors.InputError(f'it has {len(parts)} parts, not {len(spec)}')
    return tuple(
      fitted(part, own, f'part {index}')
      for index, (part, own) in enumerate(zip(parts, spec, strict=True))
    )
  return _fitted_leaf(spec, example, name)


def _columns(examples: Sequence[Any], spec: Any) -> list[np.ndarray]:
  """Returns the values of each leaf, `[n, ...]`, and lengths if they vary."""
  rows = [tf.nest.flatten(example) for example in examples]
  columns: list[np.ndarray] = []
  for leaf, values in zip(
    tf.nest.flatten(spec), zip(*rows, strict=True), strict=True
  ):
    if varies(leaf):
      columns.append(np.concatenate(values))
      columns.append(np.array([len(value) for value in values], np.int64))
    else:
      columns.append(np.stack(values))
  return columns


def _fitted_leaf(leaf: tf.TensorSpec, value: Any, name: str) -> np.ndarray:
  try:
    array = np.asarray(value)
  except ValueError:  # rows of unequal length
    array = np.empty(0, object)
  kind = leaf.dtype.as_numpy_dtype
  if leaf.dtype == tf.string:
    fits = array.dtype.kind in 'OSU'
  else:
    fits = array.size == 0 or np.can_cast(array.dtype, kind, 'same_kind')
  if not fits or not leaf.shape.is_compatible_with(array.shape):
    shape = ['?' if size is None else size for size in leaf.shape]
    raise errors.InputError(
      f'{name or "it"} is {array.dtype}{list(array.shape)}, expected '
      f'{leaf.dtype.name}{shape}'.replace("'", '')
    )
  return array.astype(kind)

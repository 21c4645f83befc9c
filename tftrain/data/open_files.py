"""Opens files that a user names, and reads them like the data of a run."""

from collections.abc import Callable
from collections.abc import Mapping
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import arrays
from tftrain.data import example_pipeline
from tftrain.data import limit
from tftrain.data import pipeline as pipeline_lib
from tftrain.data.sources import feature_spec
from tftrain.data.sources import file_source
from tftrain.data.sources import in_memory
from tftrain.data.sources import source as source_lib
from tftrain.data.sources import text
from tftrain.data.sources import tfrecord

# Used if the batches of `like` have no fixed size.
_BATCH_SIZE = 128

_FILES: Mapping[str, Callable[[Any, Any], source_lib.Source]] = {
  '.tfrecord': tfrecord.TFRecords,
  '.csv': text.Csv,
  '.jsonl': text.JsonLines,
}
_ARRAYS = ('.npy', '.npz')


def open_input(
  path: str | pathlib.Path, like: pipeline_lib.Pipeline
) -> pipeline_lib.Pipeline:
  """Makes evaluation data of files: each example once, in order.

  Files of kind `*.tfrecord*`, `.csv` and `.jsonl` hold the features of the
  source of `like`, labels included, and go through the `map`, `select`,
  `map_batch` and batcher of `like`. `.npy` is one array, `.npz` arrays by name.
  Arrays may lack the features that `select` names after the first: labels and
  weights. If `like` is not an Examples, the arrays are the features of its
  batches, unprocessed.

  Args:
    path: A file or a glob.
    like: Pipeline of the run, which defines features and processing.

  Raises:
    InputError: If the files are of an unknown kind or of several kinds, or if
      their contents do not match `like`.
  """
  if isinstance(like, limit.FirstBatches):
    like = like.data  # files are read whole
  kind = _kind_of(file_source.find(path))
  if kind in _FILES:
    if not isinstance(like, example_pipeline.Examples):
      raise errors.InputError(
        f'{path}: the data of this run is {type(like).__name__}, which does '
        f'not say how to read {kind}; give .npy or .npz'
      )
    source = _FILES[kind](path, _features_of(like))
    return like.over(source)
  found = _read_arrays(path)
  if isinstance(like, example_pipeline.Examples):
    given = _as_examples(path, found, like)
    return like.over(in_memory.InMemory(given))
  return arrays.Arrays(
    _as_batches(path, found, like),
    like.batch_size or _BATCH_SIZE,
    training=False,
  )


def file_stamps(path: str | pathlib.Path) -> list[list[Any]]:
  """Returns [name, bytes, mtime in ns] of each file, to detect changes."""
  found = [(name, os.stat(name)) for name in file_source.find(path)]
  return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def _kind_of(paths: list[str]) -> str:
  kinds = {_kind_of_one(path): path for path in paths}
  if len(kinds) > 1:
    (one, first), (two, second), *_ = kinds.items()
    raise errors.InputError(
      f'{first} and {second} are of different kinds, {one} and {two}; give one '
      'kind at a time'
    )
  return next(iter(kinds))


def _kind_of_one(path: str) -> str:
  name = os.path.basename(path)
  if '.tfrecord' in name:
    return '.tfrecord'
  suffix = pathlib.Path(name.removesuffix('.gz')).suffix
  if suffix not in _FILES and suffix not in _ARRAYS:
    raise errors.InputError(
      f'{path} is of an unknown kind; there are '
      f'{", ".join([*_FILES, *_ARRAYS])}'
    )
  return suffix


def _features_of(like: example_pipeline.Examples) -> dict[str, str]:
  spec = like.source.element_spec
  if not isinstance(spec, Mapping):
    raise errors.InputError(
      f'the examples of {type(like.source).__name__} have no names, so files '
      'cannot be read like them; give .npy or .npz'
    )
  features = {
    name: feature_spec.Feature(leaf.dtype, tuple(leaf.shape.as_list()))
    for name, leaf in spec.items()
  }
  return feature_spec.texts(features)


def _read_arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Returns name -> array; the array of an .npy is called ''."""
  first, *more = file_source.find(path)
  if more:
    raise errors.InputError(
      f'{path} matches {1 + len(more)} files; give one .npy or .npz at a time'
    )
  try:
    found = np.load(first, allow_pickle=False)
    if isinstance(found, np.ndarray):
      return {'': found}
    with found:
      return {name: found[name] for name in found.files}
  except in_memory.UNREADABLE as error:
    raise errors.InputError(
      f'{first} cannot be read: {errors.one_line(error)}; write it with '
      'np.save or np.savez(path, name=array)'
    ) from error


def _as_examples(
  path: str | pathlib.Path,
  found: Mapping[str, np.ndarray],
  like: example_pipeline.Examples,
) -> Any:
  """Returns the arrays as examples of the source of `like`."""
  spec = like.source.element_spec
  if not isinstance(spec, Mapping):
    return _nest(path, found, spec, 0)
  needless = set((like.select or ())[1:])
  needed = {name: leaf for name, leaf in spec.items() if name not in needless}
  if '' in found:
    if len(needed) != 1:
      raise errors.InputError(
        f'{path} is one array, an example has {", ".join(needed)}; give .npz '
        'with an array for each'
      )
    found = {next(iter(needed)): found['']}
  for name in needed:
    if name not in found:
      raise errors.InputError(
        f'{path} has no {name!r}; it has {", ".join(found)}'
      )
  given = {
    name: _checked(path, name, found[name], leaf, 0)
    for name, leaf in spec.items()
    if name in found
  }
  rows = in_memory.count_rows(list(given.values()))
  for name in spec:
    if name not in given:
      given[name] = _placeholder(rows, spec[name])
  return {name: given[name] for name in spec}


def _placeholder(rows: int, leaf: tf.TensorSpec) -> np.ndarray:
  """Returns zeros in place of labels, which are not read."""
  sizes = [size or 1 for size in leaf.shape]
  if leaf.dtype == tf.string:
    return np.full([rows, *sizes], b'', object)
  return np.zeros([rows, *sizes], leaf.dtype.as_numpy_dtype)


def _as_batches(
  path: str | pathlib.Path,
  found: Mapping[str, np.ndarray],
  like: pipeline_lib.Pipeline,
) -> Any:
  """Returns the features of a batch: its first part, or all of it."""
  spec = like.element_spec
  return _nest(path, found, spec[0] if isinstance(spec, tuple) else spec, 1)


def _nest(
  path: str | pathlib.Path,
  found: Mapping[str, np.ndarray],
  spec: Any,
  rows: int,
) -> Any:
  """Returns the arrays named like the leaves of `spec`, or the only array."""
  if isinstance(spec, Mapping):
    for name in spec:
      if name not in found:
        what = ', '.join(found) if any(found) else 'one array without a name'
        raise errors.InputError(
          f'{path} has no {name!r}; it has {what}; write np.savez(path, '
          f'{", ".join(f"{n}=..." for n in spec)})'
        )
    return {
      name: _nest(path, {name: found[name]}, part, rows)
      for name, part in spec.items()
    }
  if isinstance(spec, tuple):  # (features, labels, ...) of single examples
    return _nest(path, found, spec[0], rows)
  if len(found) != 1:
    raise errors.InputError(
      f'{path} has {len(found)} arrays, {", ".join(found)}; the features are '
      'one, give that alone'
    )
  ((name, array),) = found.items()
  return _checked(path, name, array, spec, rows)


def _checked(
  path: str | pathlib.Path,
  name: str,
  array: np.ndarray,
  leaf: tf.TensorSpec,
  rows: int,
) -> np.ndarray:
  """Returns the array if its examples match the data of the run.

  Args:
    path: File name for messages.
    name: Array name for messages.
    array: `[examples, ...]`.
    leaf: Spec of an example, or of a batch.
    rows: Leading dimensions of `leaf` that count examples.

  Raises:
    InputError: If the shape or the dtype of `array` does not match `leaf`.
  """
  what = f'{path}: {name!r}' if name else f'{path}'
  shape = tf.TensorShape(leaf.shape[rows:])
  if not array.ndim or not shape.is_compatible_with(array.shape[1:]):
    raise errors.InputError(
      f'{what} has the shape {list(array.shape)}; examples of this run have '
      f'{shape.as_list()}, so give [examples, '
      f'{", ".join(map(str, shape.as_list()))}]'
    )
  dtype = feature_spec.dtype_of(array)
  if dtype != leaf.dtype:
    raise errors.InputError(
      f'{what} has dtype {dtype.name}, in this run it is {leaf.dtype.name}; '
      f'write array.astype({leaf.dtype.name!r})'
    )
  return array

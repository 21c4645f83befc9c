"""Files that a user names, read as the data of a run is read."""

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

# What is read where the batches of `like` have no size of their own.
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

  `*.tfrecord*`, `.csv` and `.jsonl` hold the features that the source of `like`
  has, labels among them, and go through its `map`, `select`, `map_batch` and
  batcher. `.npy` is one array, `.npz` arrays by name. Of those, what `select`
  names after the first, labels and weights, need not be there. Where `like`
  is no Examples, arrays are the features of its batches as they are.

  Args:
    path: A file or a glob.
    like: How the data of the run is read.

  Raises:
    InputError: Files of an unknown kind or of several, or what they hold is not
      what `like` takes.
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


def stamps(path: str | pathlib.Path) -> list[list[Any]]:
  """[name, bytes, time] of each file: whether they are what they were."""
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
  """Name -> array; that of an .npy is called ''."""
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
  """What a source like that of `like` would have in memory."""
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
      given[name] = _zeros(rows, spec[name])
  return {name: given[name] for name in spec}


def _zeros(rows: int, leaf: tf.TensorSpec) -> np.ndarray:
  """In the place of labels, which nothing reads."""
  sizes = [size or 1 for size in leaf.shape]
  if leaf.dtype == tf.string:
    return np.full([rows, *sizes], b'', object)
  return np.zeros([rows, *sizes], leaf.dtype.as_numpy_dtype)


def _as_batches(
  path: str | pathlib.Path,
  found: Mapping[str, np.ndarray],
  like: pipeline_lib.Pipeline,
) -> Any:
  """The features of a batch: its first part, or all of it."""
  spec = like.element_spec
  return _nest(path, found, spec[0] if isinstance(spec, tuple) else spec, 1)


def _nest(
  path: str | pathlib.Path,
  found: Mapping[str, np.ndarray],
  spec: Any,
  rows: int,
) -> Any:
  """The arrays that are called like the leaves of `spec`, or the only one."""
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
  """The array, if its examples are as in the data of the run.

  Args:
    path: For messages, and
    name: likewise.
    array: `[examples, ...]`.
    leaf: The spec of an example, or of a batch.
    rows: How many dimensions of `leaf` count examples.
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

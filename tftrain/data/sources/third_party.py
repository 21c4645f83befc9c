"""Sources that need an optional package: TFDS, Parquet, ArrayRecord.

Each package is imported on first use. `pip install tftrain[tfds]` installs the
first; `parquet` and `arrayrecord` are the other extras.
"""

import bisect
from collections.abc import Mapping
from collections.abc import Sequence
import importlib
import os
import threading
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import _numpy_examples
from tftrain.data.sources import feature_spec
from tftrain.data.sources import file_source
from tftrain.data.sources import in_memory
from tftrain.data.sources import source as source_lib
from tftrain.data.sources import tfrecord


class Tfds(in_memory.RandomAccess):
  """A data set of tensorflow_datasets, by index.

  The data set must be prepared in a format with random access:
  `tfds build --file_format=array_record NAME`.

  Args:
    name: Name of the data set, as in `tfds.data_source`.
    split: Split, such as `train` or `train[:90%]`.
    data_dir: Directory of the data sets; None is the default of TFDS.
    features: Name -> spec, needed if lengths vary; None takes dtypes and shapes
      from the first example.

  Raises:
    ConfigError: If tensorflow_datasets is not installed.
    InputError: If the data set cannot be read by index, or is empty.
  """

  def __init__(
    self,
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    features: Mapping[str, str] | None = None,
  ):
    tfds = _imported('tensorflow_datasets', 'tfds')
    try:
      data = tfds.data_source(name, split=split, data_dir=data_dir)
    except (NotImplementedError, ValueError, OSError) as error:
      raise errors.InputError(
        f'Tfds({name!r}, {split!r}): {errors.one_line(error)}; prepare it with '
        f"'tfds build --file_format=array_record {name}'"
      ) from error
    super().__init__(data, features, name=f'{name}/{split}')


class ArrayRecord(source_lib.Indexed):
  """Examples (tf.train.Example) in ArrayRecord files, by index.

  Args:
    paths: A glob, a path or a list of them.
    features: Name -> spec, as in `TFRecords`.

  Raises:
    ConfigError: If array_record is not installed, or a spec is invalid.
    InputError: If the files have no records, or the first record does not match
      `features`.
  """

  def __init__(self, paths: file_source.Paths, features: Mapping[str, str]):
    module = _imported(
      'array_record.python.array_record_data_source', 'arrayrecord'
    )
    self._paths = file_source.find(paths)
    self._data = module.ArrayRecordDataSource(self._paths)
    self._size = len(self._data)
    if not self._size:
      raise errors.InputError(f'{self._paths[0]} holds 0 records')
    self.features = feature_spec.parse(features)
    self.element_spec = feature_spec.element_spec(self.features)
    wrong = tfrecord.mismatch(self._data[0], self.features)
    if wrong:
      raise errors.InputError(f'{self._paths[0]} record 0 {wrong}')

  def lookup(self, index: tf.Tensor) -> Any:
    def fetch(numbers: np.ndarray) -> np.ndarray:
      found = self._data.__getitems__([int(number) for number in numbers])
      return np.array(found, object)

    found = tf.numpy_function(fetch, [index], tf.string, stateful=False)
    found.set_shape(index.shape)
    return tfrecord.decoded(found, self.features)

  def fingerprint(self) -> Mapping[str, Any]:
    return _fingerprint('array record', self._paths, self._size)

  def diagnose(self) -> str | None:
    for number in range(self._size):
      wrong = tfrecord.mismatch(self._data[number], self.features)
      if wrong:
        return f'{self._paths[0]} and others, record {number} {wrong}'
    return None


class Parquet(source_lib.Indexed):
  """Rows of Parquet files, by index; one row group is read at a time.

  Shuffled reading touches many row groups: keep them small, or set
  `Examples.cache`.

  Args:
    paths: A glob, a path or a list of them.
    columns: Names of the columns to read; None reads all.
    features: Name -> spec, needed if lengths vary; None takes dtypes and shapes
      from the first row.

  Raises:
    ConfigError: If pyarrow is not installed, or a spec is invalid.
    InputError: If a file is not a Parquet file, a column is missing, or there
      are no rows.
  """

  def __init__(
    self,
    paths: file_source.Paths,
    columns: Sequence[str] | None = None,
    features: Mapping[str, str] | None = None,
  ):
    parquet = _imported('pyarrow.parquet', 'parquet')
    self._paths = file_source.find(paths)
    self._columns = None if columns is None else list(columns)
    self._files = [_parquet_file(parquet, path) for path in self._paths]
    # (file, row group), and the number of its first row over all files.
    self._groups: list[tuple[int, int]] = []
    self._starts: list[int] = []
    self._size = 0
    for number, file in enumerate(self._files):
      for group in range(file.metadata.num_row_groups):
        self._groups.append((number, group))
        self._starts.append(self._size)
        self._size += file.metadata.row_group(group).num_rows
    if not self._size:
      raise errors.InputError(f'{self._paths[0]} holds 0 rows')
    self._check_columns()
    self._lock = threading.Lock()
    self._latest: tuple[int, list[Any]] = (-1, [])
    self._failure: str | None = None
    first = self._rows(0)[0]
    self.element_spec = feature_spec.element_spec(
      feature_spec.parse(features)
      if features
      else feature_spec.of_example(first)
    )

  def lookup(self, index: tf.Tensor) -> Any:
    return _numpy_examples.lookup(self._fetch, index, self.element_spec)

  def fingerprint(self) -> Mapping[str, Any]:
    return _fingerprint('parquet', self._paths, self._size)

  def diagnose(self) -> str | None:
    return self._failure

  def _check_columns(self) -> None:
    for path, file in zip(self._paths, self._files, strict=True):
      there = file.schema_arrow.names
      for name in self._columns or self._files[0].schema_arrow.names:
        if name not in there:
          raise errors.InputError(
            f'{path} has no column {name!r}; it has {", ".join(there)}'
          )

  def _fetch(self, index: np.ndarray) -> list[Any]:
    found = []
    for number in map(int, index):
      group = bisect.bisect_right(self._starts, number) - 1
      row = self._rows(group)[number - self._starts[group]]
      try:
        found.append(_numpy_examples.fitted(row, self.element_spec))
      except errors.InputError as error:
        path = self._paths[self._groups[group][0]]
        self._failure = f'{path} row {number} of all files: {error}'
        raise
    return found

  def _rows(self, group: int) -> list[Any]:
    """Returns the rows of a row group; the latest one stays in memory."""
    with self._lock:
      latest, rows = self._latest
      if latest == group:
        return rows
      file, number = self._groups[group]
      table = self._files[file].read_row_group(number, columns=self._columns)
      rows = list(table.to_pylist())
      self._latest = (group, rows)
      return rows


def _parquet_file(parquet: Any, path: str) -> Any:
  try:
    return parquet.ParquetFile(path)
  except (OSError, ValueError) as error:  # base classes of pyarrow's errors
    raise errors.InputError(
      f'{path} is no Parquet file: {errors.one_line(error)}; write it again'
    ) from error


def _fingerprint(kind: str, paths: Sequence[str], size: int) -> dict[str, Any]:
  names = [os.path.basename(path) for path in paths]
  return {'kind': kind, 'files': names, 'size': size}


def _imported(module: str, extra: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise errors.ConfigError(
      f'{module.partition(".")[0]} is not installed; pip install '
      f"'tftrain[{extra}]'"
    ) from error

"""Sources of line-based files: text, CSV and JSON lines."""

import abc
from collections.abc import Iterator
from collections.abc import Mapping
import csv
import gzip
import json
import os
from typing import Any, IO

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import _numpy_examples
from tftrain.data.sources import feature_spec
from tftrain.data.sources import file_source

_BLOCK_BYTES = 1 << 24
_LOOKED_AT = 100


class TextLines(file_source.Stream):
  """Lines of text files, as `{'text': string}`; plain or gzip.

  The lines are counted first, at about a second per gigabyte.

  Args:
    paths: A glob, a path or a list of them.

  Raises:
    InputError: If only some of the files are gzip, or a file has no lines.
  """

  _header = 0

  def __init__(self, paths: file_source.Paths):
    found = file_source.find(paths)
    self._compressed = {_is_gzip(path) for path in found}
    if len(self._compressed) > 1:
      raise errors.InputError(
        'some of the files are gzip and some are not; make a source of each '
        'kind, and a Mixture'
      )
    counts = {path: _count_lines(path) - self._header for path in found}
    for path, count in counts.items():
      if count < 1:
        raise errors.InputError(f'{path}: there is no line below the header')
    super().__init__([file_source.File(path, n) for path, n in counts.items()])
    self.element_spec = {'text': tf.TensorSpec([], tf.string)}

  def read(self, number: tf.Tensor) -> tf.data.Dataset:
    kind = 'GZIP' if True in self._compressed else None
    return tf.data.TextLineDataset(self.path(number), kind).skip(self._header)

  def decode(self, records: tf.Tensor) -> dict[str, Any]:
    return {'text': records}


class _Parsed(TextLines):
  """Lines that are parsed into features, and may be invalid."""

  features: Mapping[str, feature_spec.Feature]

  def fingerprint(self) -> Mapping[str, Any]:
    return {
      **super().fingerprint(),
      'features': feature_spec.texts(self.features),
    }

  def diagnose(self) -> str | None:
    for file in self.files:
      for number, line in file_source.with_time_limit(
        _numbered_lines(file.path, self._header)
      ):
        wrong = self._wrong(line)
        if wrong:
          return f'{file.path} line {number}: {wrong}'
    return None

  @abc.abstractmethod
  def _wrong(self, line: str) -> str | None:
    """Returns the error in a line; None if the line is valid."""


class Csv(_Parsed):
  """Rows of CSV files with a header; a row is a line.

  >>> Csv('/data/cars/*.csv', {'weight': 'float32', 'make': 'string'})

  Args:
    paths: A glob, a path or a list of them.
    features: Column -> `int64`, `float32` or `string`, for the columns to read;
      None reads all columns, with the narrowest dtype that fits the first 100
      rows.
    delimiter: Separator of columns; a comma by default.

  Raises:
    ConfigError: If a feature has another dtype, or a shape.
    InputError: If the headers of the files differ, or lack a column of
      `features`.
  """

  _header = 1

  def __init__(
    self,
    paths: file_source.Paths,
    features: Mapping[str, str] | None = None,
    *,
    delimiter: str = ',',
  ):
    super().__init__(paths)
    self._delimiter = delimiter
    self._columns = _header_of(self.files, delimiter)
    given = features or self._narrowest()
    self.features = feature_spec.parse(given)
    for name, feature in self.features.items():
      if name not in self._columns:
        raise errors.InputError(
          f'{self.files[0].path} has no column {name!r}; it has '
          f'{", ".join(self._columns)}'
        )
      if feature.shape or feature.stored != feature.dtype:
        raise errors.ConfigError(
          f"Csv.features[{name!r}] = '{feature}'; give 'int64', 'float32' or "
          "'string'"
        )
    self.element_spec = feature_spec.element_spec(self.features)

  def decode(self, records: tf.Tensor) -> dict[str, Any]:
    # All columns: otherwise decode_csv ignores surplus values of a row.
    defaults: list[Any] = [['']] * len(self._columns)
    for name, feature in self.features.items():
      if feature.dtype != tf.string:
        needed = tf.zeros([0], feature.dtype)
        defaults[self._columns.index(name)] = needed
    values = tf.io.decode_csv(records, defaults, field_delim=self._delimiter)
    return {name: values[self._columns.index(name)] for name in self.features}

  def _row(self, line: str) -> list[str]:
    return next(csv.reader([line], delimiter=self._delimiter), [])

  def _wrong(self, line: str) -> str | None:
    row = self._row(line)
    if len(row) != len(self._columns):
      return f'{len(row)} values, the header names {len(self._columns)} columns'
    for name, feature in self.features.items():
      value = row[self._columns.index(name)]
      if not _is(value, feature.dtype):
        shown = repr(value) if value else 'nothing'
        return f'{shown} in column {name!r}, which is {feature}'
    return None

  def _narrowest(self) -> dict[str, str]:
    rows = [
      self._row(line)
      for (_, line), _ in zip(
        _numbered_lines(self.files[0].path, 1), range(_LOOKED_AT), strict=False
      )
    ]
    found = {}
    for index, name in enumerate(self._columns):
      values = [row[index] for row in rows if index < len(row)]
      found[name] = next(
        dtype.name
        for dtype in (tf.int64, tf.float32, tf.string)
        if all(_is(value, dtype) for value in values if value)
      )
    return found


class JsonLines(_Parsed):
  """Files with a JSON object in each line, parsed in Python.

  >>> JsonLines('/data/dialogues.jsonl', {'ids': 'int64[?]', 'text': 'string'})

  Args:
    paths: A glob, a path or a list of them.
    features: Key -> spec, as in `TFRecords`; None takes all keys of the first
      line, with their dtypes and shapes. Other keys are ignored.

  Raises:
    InputError: If the first line is not a JSON object, or lacks a feature.
  """

  def __init__(
    self, paths: file_source.Paths, features: Mapping[str, str] | None = None
  ):
    super().__init__(paths)
    path = self.files[0].path
    _, first = next(_numbered_lines(path, 0))
    try:
      found = _object_of(first)
    except ValueError as error:
      raise errors.InputError(f'{path} line 1: {error}') from error
    self.features = (
      feature_spec.parse(features)
      if features
      else feature_spec.of_example(found)
    )
    self.element_spec = feature_spec.element_spec(self.features)
    wrong = self._wrong(first)
    if wrong:
      raise errors.InputError(f'{path} line 1: {wrong}')

  def decode(self, records: tf.Tensor) -> dict[str, Any]:
    def parse(lines: np.ndarray) -> list[Any]:
      return [self._parsed(line) for line in lines]

    return dict(_numpy_examples.lookup(parse, records, self.element_spec))

  def _parsed(self, line: bytes | str) -> Any:
    found = _object_of(line)
    missing = [name for name in self.features if found.get(name) is None]
    if missing:
      raise errors.InputError(
        f'has no {missing[0]!r}; it has {", ".join(sorted(found))}'
      )
    chosen = {name: found[name] for name in self.features}
    return _numpy_examples.fitted(chosen, self.element_spec)

  def _wrong(self, line: str) -> str | None:
    try:
      self._parsed(line)
    except (ValueError, TypeError) as error:
      return errors.one_line(error)
    return None


def _object_of(line: bytes | str) -> dict[str, Any]:
  found = json.loads(line)
  if not isinstance(found, dict):
    raise errors.InputError('it is no object; write {"name": value}')
  return found


def _is_gzip(path: str) -> bool:
  with tf.io.gfile.GFile(path, 'rb') as file:
    return bool(file.read(2) == b'\x1f\x8b')


def _open(path: str) -> IO[bytes]:
  file: IO[bytes] = tf.io.gfile.GFile(path, 'rb')
  return gzip.GzipFile(fileobj=file) if _is_gzip(path) else file  # type: ignore[return-value]


def _count_lines(path: str) -> int:
  """Counts lines as TensorFlow does: text after the last newline is a line."""
  count, last = 0, b'\n'
  try:
    with _open(path) as file:
      while block := file.read(_BLOCK_BYTES):
        count += block.count(b'\n')
        last = block[-1:]
  except (EOFError, OSError) as error:
    raise errors.InputError(
      f'{path} cannot be read to its end: {errors.one_line(error)}; write it '
      'again'
    ) from error
  return count + (last != b'\n')


def _numbered_lines(path: str, skip: int) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, line) of a file, below its header."""
  with _open(path) as file:
    for number, line in enumerate(file, 1):
      if number > skip:
        yield number, line.decode(errors='replace').rstrip('\r\n')


def _header_of(files: Any, delimiter: str) -> list[str]:
  """Returns the column names, which must be the same in all files."""
  first: list[str] = []
  for file in files:
    _, line = next(_numbered_lines(file.path, 0))
    names = next(csv.reader([line.lstrip('\ufeff')], delimiter=delimiter))
    first = first or names
    if names != first:
      raise errors.InputError(
        f'{file.path} has the columns {", ".join(names)}, '
        f'{os.path.basename(files[0].path)} has {", ".join(first)}; make a '
        'source of each'
      )
  if len(set(first)) < len(first):
    raise errors.InputError(
      f'{files[0].path}: two columns have the same name; the header is '
      f'{", ".join(first)}'
    )
  return first


def _is(text: str, dtype: tf.DType) -> bool:
  if dtype == tf.string:
    return True
  try:
    int(text) if dtype == tf.int64 else float(text)
  except ValueError:
    return False
  return True

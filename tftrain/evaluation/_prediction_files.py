"""Prediction files: resumable writers of JSON lines and of arrays."""

import abc
from collections.abc import Iterator
from collections.abc import Mapping
import io
import json
import math
import pathlib
import time
from typing import Any

import numpy as np

from tftrain import errors
from tftrain.platform import files
from tftrain.platform import jsonl

PART_BYTES, PART_SECONDS = 1 << 24, 10.0
"""Columns are written after this many bytes, or this many seconds."""

_LINES = 'lines.jsonl'
_PART = '[0-9]*-[0-9]*.npz'

Columns = Mapping[str, np.ndarray]
"""Name -> `[rows, ...]`."""


class Store(abc.ABC):
  """Rows in a working directory, which become one file at the end.

  Attributes:
    count: Number of rows added by this process and earlier ones.
  """

  count: int

  @abc.abstractmethod
  def add(self, arrays: Columns) -> None:
    """Adds rows after the existing ones."""

  def flush(self) -> None:
    """Writes buffered rows to disk."""
    return

  @abc.abstractmethod
  def finish(self, output: pathlib.Path) -> None:
    """Makes one file, `output`, of all rows."""


def store_for(output: pathlib.Path) -> type['Lines'] | type['Parts']:
  """Returns the Store class for the suffix of `output`.

  Raises:
    ConfigError: If the suffix is neither `.jsonl` nor `.npz`.
  """
  stores: dict[str, type[Lines] | type[Parts]] = {
    '.jsonl': Lines,
    '.npz': Parts,
  }
  if output.suffix not in stores:
    raise errors.ConfigError(
      f'output {str(output)!r} ends in neither .jsonl nor .npz; name it so'
    )
  return stores[output.suffix]


def is_begun(directory: pathlib.Path) -> bool:
  """Returns whether `directory` holds rows."""
  return (directory / _LINES).exists() or any(directory.glob(_PART))


class Lines(Store):
  """Store of JSON lines, one object per row."""

  def __init__(self, directory: pathlib.Path):
    self._path = directory / _LINES
    self.count = jsonl.cut_partial_line(self._path)

  def add(self, arrays: Columns) -> None:
    rows = lines(self.count, arrays)
    jsonl.append_line(self._path, '\n'.join(rows))
    self.count += len(rows)

  def finish(self, output: pathlib.Path) -> None:
    if not self.count:
      files.write_text(self._path, '')
    files.move(self._path, output)


def lines(first: int, arrays: Columns) -> list[str]:
  """Returns a JSON object per row; NaN and infinities become strings."""
  if 'index' in arrays:
    raise errors.TaskError(
      "serve() returned an output called 'index', which is the example's "
      'number in a line; give it another name, or write .npz'
    )
  columns = [_texts(array) for array in arrays.values()]
  keys = [f', {json.dumps(name)}: ' for name in arrays]
  if len(columns) == 1:
    key = keys[0]
    return [
      f'{{"index": {index}{key}{text}}}'
      for index, text in enumerate(columns[0], first)
    ]
  rows = zip(*columns, strict=True)
  return [
    f'{{"index": {index}'
    + ''.join([k + text for k, text in zip(keys, texts, strict=True)])
    + '}'
    for index, texts in enumerate(rows, first)
  ]


def _texts(array: np.ndarray) -> list[str]:
  """Returns the JSON value of each row."""
  if array.dtype.kind not in 'biufOSU':  # bfloat16
    array = array.astype(np.float32)
  numbers = array.dtype.kind in 'biu' or (
    array.dtype.kind == 'f' and bool(np.isfinite(array).all())
  )
  rows = array.tolist()
  if numbers and array.ndim < 3 and array.size:
    # One call and a split take half the time of a call per row.
    text = json.dumps(rows)
    if array.ndim == 1:
      return text[1:-1].split(', ')
    return [f'[{row}]' for row in text[2:-2].split('], [')]
  if not numbers:
    rows = _json_safe(rows)
  return [json.dumps(row, allow_nan=False) for row in rows]


def _json_safe(value: Any) -> Any:
  if isinstance(value, list):
    return [_json_safe(entry) for entry in value]
  if isinstance(value, bytes):
    return value.decode(errors='backslashreplace')
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


class Parts(Store):
  """Store of array files, `<first>-<end>.npz`, which are merged at the end."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    files.remove_stale(directory)
    self._paths = sorted(directory.glob(_PART))
    self._written = 0
    if self._paths:
      self._written = int(self._paths[-1].stem.partition('-')[2])
    self.count = self._written
    self._kept: list[Columns] = []
    self._bytes = 0
    self._since = time.monotonic()
    self._shapes: dict[str, tuple[int, ...]] = {}

  def add(self, arrays: Columns) -> None:
    arrays = {name: _storable(array) for name, array in arrays.items()}
    if not self._shapes:
      self._shapes = self._shapes_before() or _shapes(arrays)
    _check_shapes(self._shapes, _shapes(arrays), self.count)
    self._kept.append(arrays)
    self.count += len(next(iter(arrays.values())))
    self._bytes += sum(array.nbytes for array in arrays.values())
    late = time.monotonic() - self._since > PART_SECONDS
    if late or self._bytes > PART_BYTES:
      self.flush()

  def flush(self) -> None:
    if self._kept:
      path = self._directory / f'{self._written:012d}-{self.count:012d}.npz'
      kept = self._kept
      files.write_zip(
        path,
        (_member(name, [arrays[name] for arrays in kept]) for name in kept[0]),
      )
      self._paths.append(path)
      self._written, self._kept, self._bytes = self.count, [], 0
    self._since = time.monotonic()

  def finish(self, output: pathlib.Path) -> None:
    self.flush()
    names = []
    if self._paths:
      with np.load(self._paths[0], allow_pickle=False) as part:
        names = part.files
    whole = self._directory / 'whole.npz'  # removed with its directory
    files.write_zip(whole, map(self._whole, names))
    files.move(whole, output)

  def _shapes_before(self) -> dict[str, tuple[int, ...]]:
    if not self._paths:
      return {}
    with np.load(self._paths[0], allow_pickle=False) as part:
      return _shapes({name: part[name] for name in part.files})

  def _whole(self, name: str) -> tuple[str, Iterator[bytes]]:
    """Returns a member of the merged file, streamed from one part at a time."""
    heads = [self._head(path, name) for path in self._paths]
    dtype = np.result_type(*[dtype for dtype, _ in heads])

    def pieces() -> Iterator[bytes]:
      yield _header(dtype, (self.count, *heads[0][1]))
      for path in self._paths:
        with np.load(path, allow_pickle=False) as part:
          yield part[name].astype(dtype, copy=False).tobytes()

    return f'{name}.npy', pieces()

  def _head(
    self, path: pathlib.Path, name: str
  ) -> tuple[np.dtype[Any], tuple[int, ...]]:
    with np.load(path, allow_pickle=False) as part:
      array = part[name]
    return array.dtype, array.shape[1:]


def _shapes(arrays: Columns) -> dict[str, tuple[int, ...]]:
  return {name: array.shape[1:] for name, array in arrays.items()}


def _check_shapes(
  before: Mapping[str, Any], now: Mapping[str, Any], row: int
) -> None:
  for name, shape in now.items():
    if before[name] != shape:
      raise errors.TaskError(
        f'serve() returned {name!r} of shape {list(shape)} for example {row}, '
        f'and {list(before[name])} for those before; write .jsonl, or make the '
        'shapes equal'
      )


def _storable(array: np.ndarray) -> np.ndarray:
  if array.dtype == object:
    return np.array(array.tolist(), bytes).reshape(array.shape)
  if array.dtype.kind not in 'biufSU':  # bfloat16
    return array.astype(np.float32)
  return array


def _member(name: str, arrays: list[np.ndarray]) -> tuple[str, Iterator[bytes]]:
  dtype = np.result_type(*arrays)
  rows = sum(map(len, arrays))

  def pieces() -> Iterator[bytes]:
    yield _header(dtype, (rows, *arrays[0].shape[1:]))
    for array in arrays:
      yield array.astype(dtype, copy=False).tobytes()

  return f'{name}.npy', pieces()


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
  header = io.BytesIO()
  described = np.lib.format.dtype_to_descr(dtype)
  np.lib.format.write_array_header_1_0(
    header, {'descr': described, 'fortran_order': False, 'shape': shape}
  )
  return header.getvalue()

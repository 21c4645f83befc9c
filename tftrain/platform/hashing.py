"""Digests: SHA-256 of texts, arrays and sets of arrays, in hexadecimal."""

from collections.abc import Iterable
from collections.abc import Iterator
from concurrent import futures
import hashlib
import json
from typing import Any

import numpy as np

# Larger arrays are hashed in parts of this many bytes, on all cores; their
# digest covers the digests of the parts.
_PART_BYTES = 1 << 25


def text_digest(text: str) -> str:
  """Returns the digest of a text."""
  return hashlib.sha256(text.encode()).hexdigest()


def value_digest(value: Any) -> str:
  """Returns the digest of a value's JSON; other types count as their str."""
  return text_digest(json.dumps(value, sort_keys=True, default=str))


def array_digest(array: np.ndarray) -> str:
  """Returns the plain SHA-256 of an array's content, in C order."""
  if array.dtype == object:  # strings
    return hashlib.sha256(b''.join(array.reshape(-1))).hexdigest()
  return hashlib.sha256(_bytes_of(array).data).hexdigest()


def arrays_digest(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
  """Returns the digest of (name, array) pairs: name, dtype, shape, content."""
  digest = hashlib.sha256()
  for name, array in arrays:
    kind = 'string' if array.dtype.kind in 'OSU' else array.dtype.name
    digest.update(f'{name} {kind}{list(array.shape)}\n'.encode())
    for part in _parts(array):
      digest.update(part)
  return digest.hexdigest()


def _parts(array: np.ndarray) -> Iterator[Any]:
  if array.dtype.kind in 'OSU':
    for entry in array.reshape(-1).tolist():
      text = entry.encode() if isinstance(entry, str) else entry
      yield b'%d:%b' % (len(text), text)  # the length separates strings
    return
  flat = _bytes_of(array)
  if flat.size <= _PART_BYTES:
    yield flat.data
    return
  starts = range(0, flat.size, _PART_BYTES)
  with futures.ThreadPoolExecutor() as pool:
    yield from pool.map(
      lambda start: hashlib.sha256(
        flat[start : start + _PART_BYTES].data
      ).digest(),
      starts,
    )


def _bytes_of(array: np.ndarray) -> np.ndarray:
  """Returns the content as uint8, without a copy where it is contiguous."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

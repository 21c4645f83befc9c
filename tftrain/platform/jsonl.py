"""JSON lines: reading, appending, and removing lines on resume."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any

from tftrain.platform import files

_BLOCK_BYTES = 1 << 20

Key = tuple[Any, ...]


class ResumableLog:
  """A file of JSON lines, each with a step.

  A run that resumes from an earlier step removes the lines after that step and
  writes them again. The file of a killed and resumed run is therefore
  byte-identical to the file of an uninterrupted run.

  Args:
    path: Path of the file.
    keys: Names of the fields that identify a line, including the step. After a
      resume, a line whose key is still in the file is not written again.
  """

  def __init__(self, path: pathlib.Path, keys: Sequence[str] = ('step',)):
    self.path = path
    self._keys = keys
    self._kept: set[Key] = set()
    self._last: Key | None = None

  def resume(self, step: int) -> set[Key]:
    """Removes the lines after `step`; returns the keys of the other lines."""
    _keep_until(self.path, step)
    self._kept = {self._key(line) for line in read(self.path)}
    self._last = None
    return self._kept

  def append(self, line: Mapping[str, Any]) -> bool:
    """Appends a line; returns False if a line that was kept has its key."""
    if self._key(line) in self._kept:
      return False
    self._last = self._key(line)
    append_line(self.path, to_json(line))
    return True

  def holds(self, *key: Any) -> bool:
    """Returns whether the file has a line with these values of `keys`."""
    return key in self._kept or key == self._last

  def _key(self, line: Mapping[str, Any]) -> Key:
    return tuple(line.get(name) for name in self._keys)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines that have a step; a partial last line is left out."""
  with files.convert_os_errors(path):
    if not path.exists():
      return []
    text = path.read_text(encoding='utf-8', errors='replace')
  return [json.loads(line) for line in text.splitlines() if _has_step(line)]


def to_json(values: Mapping[str, Any]) -> str:
  """Returns strict JSON: NaN and the infinities become strings."""
  clean = {
    key: str(value) if isinstance(value, float) and not math.isfinite(value)
    else value
    for key, value in values.items()
  }  # fmt: skip
  return json.dumps(clean, allow_nan=False)


def append_line(path: pathlib.Path, line: str) -> None:
  """Appends in one write: a kill leaves the whole line or nothing."""
  with files.convert_os_errors(path):
    files.disk.append(path, (line + '\n').encode())


def cut_partial_line(path: pathlib.Path) -> int:
  """Cuts off a partial last line; returns the number of whole lines."""
  count, size, end = 0, 0, 0
  with files.convert_os_errors(path):
    if not path.exists():
      return 0
    with path.open('rb') as file:
      while block := file.read(_BLOCK_BYTES):
        count += block.count(b'\n')
        end = size + block.rfind(b'\n') + 1 if b'\n' in block else end
        size += len(block)
    if end < size:
      files.disk.truncate(path, end)
  return count


def _keep_until(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
  with files.convert_os_errors(path):
    text = path.read_text(encoding='utf-8', errors='replace')
    kept = [line for line in text.splitlines() if _has_step(line, step)]
    if kept != text.splitlines() or (text and not text.endswith('\n')):
      files.write_text(path, ''.join(line + '\n' for line in kept))


def _has_step(line: str, last: float = math.inf) -> bool:
  """Returns whether a line is JSON with a step of at most `last`."""
  try:
    return int(json.loads(line)['step']) <= last
  except (ValueError, KeyError, TypeError):
    return False  # a kill cut the line

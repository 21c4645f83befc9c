"""File operations: checked names, atomic writes and staging directories.

Other modules write, rename and delete files only through this one.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import io
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any, BinaryIO
import uuid
import zipfile

from tftrain import errors
from tftrain.platform import _filesystem

STAGING = '.tmp-'

# Names that may become part of a path.
_NAME = re.compile(r'[A-Za-z0-9_=,+][A-Za-z0-9._=,+-]{0,99}')

# `gs://bucket/run`, or `gs:/bucket/run` after pathlib has normalized it.
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')

_BLOCK_BYTES = 1 << 20

disk = _filesystem.Disk()
"""The file system of all functions below; tests replace it by a failing one."""


def check_name(name: Any, what: str) -> str:
  """Returns `name` if it is safe as part of a path.

  Args:
    name: The name. An unsafe name could leave its directory, be hidden in it,
      or be impossible to create.
    what: Kind of the name, for the error.

  Raises:
    ConfigError: If `name` is not 1 to 100 letters, digits or ._=,+-, or begins
      with a dot or a dash.
  """
  if not isinstance(name, str) or not _NAME.fullmatch(name):
    raise errors.ConfigError(
      f'{what} {name!r} cannot name a directory; give 1 to 100 letters, digits '
      'or ._=,+- that begin with neither a dot nor a dash'
    )
  return name


def run_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a model_dir as a path.

  Raises:
    RunDirectoryError: If `path` is the address of an object store. Object
      stores have neither the atomic rename that commits a checkpoint nor locks.
  """
  text = os.fspath(path)
  if _ADDRESS.match(text):
    raise errors.RunDirectoryError(
      f'model_dir {text!r} is no directory: object stores have neither an '
      'atomic rename nor locks; choose a local or network file system, and '
      'copy the export from there'
    )
  return pathlib.Path(text)


def make_directory(path: pathlib.Path, what: str = 'model_dir') -> None:
  """Creates `path` and verifies that it is writable.

  Args:
    path: The directory.
    what: Name of the setting that the user should change, for the error.

  Raises:
    RunDirectoryError: If `path` or a file in it cannot be created.
  """
  probe = path / f'{STAGING}probe-{uuid.uuid4().hex}'
  try:
    _make_parents(path)
    try:
      disk.write(probe, b'')
    finally:  # a signal may interrupt an export just here
      with contextlib.suppress(FileNotFoundError):
        disk.remove(probe)
  except OSError as error:
    raise errors.RunDirectoryError(
      f'cannot write to {path}: {error.strerror}; choose another {what} or '
      'change its permissions'
    ) from error


def _make_parents(path: pathlib.Path) -> None:
  if path.is_dir():
    return
  if path.parent != path:
    _make_parents(path.parent)
  try:
    disk.make_directory(path)
  except FileExistsError:
    if not path.is_dir():  # else another process made it
      raise


def free_bytes(path: pathlib.Path) -> int:
  """Returns the free bytes on the disk of `path`, which need not exist."""
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file atomically: readers see the old text or the new text."""
  staged = path.with_name(f'{STAGING}{path.name}-{uuid.uuid4().hex}')
  try:
    disk.write(staged, text.encode())
    disk.rename(staged, path)
  except BaseException:
    with contextlib.suppress(OSError):
      disk.remove(staged)
    raise


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  disk.write(path, content)


def write_new(path: pathlib.Path, text: str) -> bool:
  """Creates a file atomically; returns False if `path` exists.

  Of several processes that try at the same time, on any machine, exactly one
  succeeds.
  """
  staged = path.with_name(f'{STAGING}{path.name}-{uuid.uuid4().hex}')
  try:
    disk.write(staged, text.encode())
    disk.link(staged, path)
  except FileExistsError:
    return False
  finally:
    with contextlib.suppress(OSError):
      disk.remove(staged)
  return True


def touch(path: pathlib.Path) -> None:
  """Sets the timestamps of a file to now; never creates the file."""
  disk.touch(path)


def rename(old: pathlib.Path, new: pathlib.Path) -> None:
  """Renames a file.

  Raises:
    FileNotFoundError: If another process has already renamed or removed `old`.
  """
  disk.rename(old, new)


def remove(path: pathlib.Path) -> None:
  disk.remove(path)


def write_json(path: pathlib.Path, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


@contextlib.contextmanager
def convert_os_errors(path: pathlib.Path) -> Iterator[None]:
  """Converts an OSError to a RunDirectoryError that names `path`."""
  try:
    yield
  except OSError as error:
    raise errors.RunDirectoryError(
      f'cannot use {path}: {error.strerror or error}; mend that, then '
      'start the same command again'
    ) from error


def open_log(path: pathlib.Path) -> BinaryIO:
  """Opens a file that collects the output of another process."""
  with convert_os_errors(path):
    return path.open('ab')


def move(old: pathlib.Path, new: pathlib.Path) -> None:
  """Syncs a file to disk, then renames it to its final name."""
  with convert_os_errors(new):
    disk.sync(old)
    disk.rename(old, new)


class _Appended(io.RawIOBase):
  """An append-only raw file that writes through `disk`."""

  def __init__(self, path: pathlib.Path):
    super().__init__()
    self._path = path

  def writable(self) -> bool:
    return True

  def write(self, content: Any) -> int:
    disk.append(self._path, bytes(content))
    return len(content)


def write_zip(
  path: pathlib.Path, members: Iterable[tuple[str, Iterable[bytes]]]
) -> None:
  """Writes a zip file atomically, from members that come in pieces.

  Equal members give byte-identical files, as all timestamps are constant.
  """
  staged = path.with_name(f'{STAGING}{path.name}-{uuid.uuid4().hex}')
  try:
    with convert_os_errors(path):
      disk.write(staged, b'')
      with (
        io.BufferedWriter(_Appended(staged), _BLOCK_BYTES) as file,
        zipfile.ZipFile(file, 'w') as archive,
      ):
        for name, pieces in members:
          info = zipfile.ZipInfo(name)
          with archive.open(info, 'w', force_zip64=True) as member:
            for piece in pieces:
              member.write(piece)
    move(staged, path)
  except BaseException:
    with contextlib.suppress(OSError):
      disk.remove(staged)
    raise


@contextlib.contextmanager
def sort_after_existing(directory: pathlib.Path, prefix: str) -> Iterator[None]:
  """Makes files that are created inside sort after older ones of `prefix`.

  After `prefix`, a name continues with ten digits, the seconds since 1970. A
  file that was created within the same second, or after the clock was set
  back, would sort before older files and is renamed.
  """
  before = set(directory.glob(f'{prefix}*'))
  yield
  last = max((path.name for path in before), default='')
  start, end = len(prefix), len(prefix) + 10
  for path in sorted(set(directory.glob(f'{prefix}*')) - before):
    if path.name <= last:
      digits = f'{int(last[start:end]) + 1:010d}'
      disk.rename(path, path.with_name(prefix + digits + path.name[end:]))


def sync(path: pathlib.Path) -> None:
  """Syncs a file, or everything below a directory, to disk (fsync)."""
  if path.is_dir():
    for child in sorted(path.iterdir()):
      sync(child)
  if path.exists():
    disk.sync(path)


@contextlib.contextmanager
def staged_directory(
  final: pathlib.Path, *, durable: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a staging directory that is renamed to `final` on success.

  The atomic rename is the only commit point: a reader of the parent directory
  sees all of `final` or nothing. On an error the staging directory is removed.

  Args:
    final: Path after the rename.
    durable: Whether `final` must survive a power cut.
  """
  staged = final.with_name(f'{STAGING}{final.name}-{uuid.uuid4().hex}')
  try:
    _make_parents(staged)
    yield staged
    if durable:
      sync(staged)
    disk.rename(staged, final)
    if durable:  # also the parents, which may be new
      for parent in final.absolute().parents[:3]:
        disk.sync(parent)
  except BaseException:
    with contextlib.suppress(OSError):
      _remove_tree(staged)
    raise


@contextlib.contextmanager
def scratch_directory() -> Iterator[pathlib.Path]:
  """Yields a temporary directory of the system; removes it afterwards."""
  with tempfile.TemporaryDirectory(prefix='tftrain-') as path:
    yield pathlib.Path(path)


@contextlib.contextmanager
def staged_files(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a staging directory; moves its files to `directory` on success."""
  staged = directory / f'{STAGING}files-{uuid.uuid4().hex}'
  try:
    _make_parents(staged)
    yield staged
    for path in sorted(staged.iterdir()):
      disk.rename(path, directory / path.name)
  finally:
    with contextlib.suppress(OSError):
      _remove_tree(staged)


def set_aside(path: pathlib.Path, why: str) -> None:
  """Renames a path to keep it for inspection; the new name contains `why`."""
  disk.rename(path, path.with_name(f'{path.name}.{why}-{uuid.uuid4().hex[:8]}'))


def remove_directory(path: pathlib.Path) -> None:
  """Removes a directory; a rename hides it before its files are deleted."""
  doomed = path.with_name(f'{STAGING}{path.name}-{uuid.uuid4().hex}')
  disk.rename(path, doomed)
  _remove_tree(doomed)


def _remove_tree(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    for child in sorted(path.iterdir()):
      _remove_tree(child)
    disk.remove_directory(path)
  else:
    disk.remove(path)


def remove_stale(parent: pathlib.Path) -> None:
  """Removes the staging paths that killed processes left in `parent`."""
  # A path that cannot be removed is harmless; the next call tries again.
  with contextlib.suppress(OSError):
    for path in sorted(parent.glob(f'{STAGING}*')):
      with contextlib.suppress(OSError):
        _remove_tree(path)

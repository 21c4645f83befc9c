"""The only place that writes, renames, locks or deletes files of ours."""

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

# What a name may be that becomes part of a path.
_NAME = re.compile(r'[A-Za-z0-9_=,+][A-Za-z0-9._=,+-]{0,99}')

# `gs://bucket/run`, and what pathlib makes of it.
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')

_BLOCK_BYTES = 1 << 20

disk = _filesystem.Disk()
"""Where everything below goes; tests put one that fails in its place."""


def check_name(name: Any, what: str) -> str:
  """Returns a name that is safe as part of a path.

  Raises:
    ConfigError: It could leave its directory, hide in it, or not exist.
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
    RunDirectoryError: It is the address of an object store: those know neither
      the rename that commits a checkpoint nor the lock.lock that keeps others away.
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
  """Makes `path` and proves that it can be written to.

  Args:
    path: Where.
    what: What the user would choose another of.

  Raises:
    RunDirectoryError: It cannot be made, or a file in it cannot.
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
    if not path.is_dir():  # else somebody made it meanwhile
      raise


def free_bytes(path: pathlib.Path) -> int:
  """What is free on the disk on which `path` is, or will be."""
  while not path.exists():
    path = path.parent
  return shutil.disk_usage(path).free


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a whole file: readers see the old text or the new, never half."""
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
  """Writes a whole file if there is none yet; False if there is one.

  Of several who try at the same time, on whatever machine, one succeeds.
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
  """Sets the time of a file to now; one that is gone is not made again."""
  disk.touch(path)


def rename(old: pathlib.Path, new: pathlib.Path) -> None:
  """Renames a file; FileNotFoundError if somebody else was faster."""
  disk.rename(old, new)


def remove(path: pathlib.Path) -> None:
  disk.remove(path)


def write_json(path: pathlib.Path, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
  """Makes a RunDirectoryError of what the system says of `path`."""
  try:
    yield
  except OSError as error:
    raise errors.RunDirectoryError(
      f'cannot use {path}: {error.strerror or error}; mend that, then '
      'start the same command again'
    ) from error


def open_log(path: pathlib.Path) -> BinaryIO:
  """A file that grows by what another process prints."""
  with explained(path):
    return path.open('ab')


def move(old: pathlib.Path, new: pathlib.Path) -> None:
  """Gives a file its final name; a power cut does not take its content."""
  with explained(new):
    disk.sync(old)
    disk.rename(old, new)


class _Appended(io.RawIOBase):
  """A file that can only grow, by way of `disk`."""

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
  """Writes a zip of members that come in pieces: readers see all or nothing.

  Equal members make equal files, as no time is noted.
  """
  staged = path.with_name(f'{STAGING}{path.name}-{uuid.uuid4().hex}')
  try:
    with explained(path):
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
def named_last(directory: pathlib.Path, prefix: str) -> Iterator[None]:
  """What is made inside gets a name after all that begin with `prefix`.

  Such names go on with ten digits, seconds since 1970: after the clock was set
  back, or within one second, a new file would come before older ones.
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
  """Makes a file, or all that is below a directory, survive a power cut."""
  if path.is_dir():
    for child in sorted(path.iterdir()):
      sync(child)
  if path.exists():
    disk.sync(path)


@contextlib.contextmanager
def staged_directory(
  final: pathlib.Path, *, durable: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a temporary directory that is renamed to `final` on success.

  The rename is the only commit point: whoever lists the parent sees all of
  `final` or nothing of it. On an error nothing is left behind.

  Args:
    final: What it will be called.
    durable: Whether it must survive a power cut from then on.
  """
  staged = final.with_name(f'{STAGING}{final.name}-{uuid.uuid4().hex}')
  try:
    _make_parents(staged)
    yield staged
    if durable:
      sync(staged)
    disk.rename(staged, final)
    if durable:  # and its directory, which may be new, and that one's
      for parent in final.absolute().parents[:3]:
        disk.sync(parent)
  except BaseException:
    with contextlib.suppress(OSError):
      _remove_tree(staged)
    raise


@contextlib.contextmanager
def scratch_directory() -> Iterator[pathlib.Path]:
  """Yields a directory of the system's for temporary files; removed after."""
  with tempfile.TemporaryDirectory(prefix='tftrain-') as path:
    yield pathlib.Path(path)


@contextlib.contextmanager
def staged_files(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary directory whose files move to `directory` on success."""
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
  """Renames what is of no use any more but may be looked at."""
  disk.rename(path, path.with_name(f'{path.name}.{why}-{uuid.uuid4().hex[:8]}'))


def remove_directory(path: pathlib.Path) -> None:
  """Removes a directory; it leaves every listing before its files go."""
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
  """Removes what a killed process left half-written in `parent`."""
  # What cannot be removed now does no harm, and is tried again next time.
  with contextlib.suppress(OSError):
    for path in sorted(parent.glob(f'{STAGING}*')):
      with contextlib.suppress(OSError):
        _remove_tree(path)

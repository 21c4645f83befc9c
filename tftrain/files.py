"""The only place that writes, renames, locks or deletes files of ours."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import socket
import tempfile
import time
from typing import Any
import uuid

from tftrain import errors

STAGING = '.tmp-'


def make_directory(path: pathlib.Path) -> None:
  """Makes `path` and proves that it can be written to.

  Raises:
    RunDirectoryError: It cannot be made, or a file in it cannot.
  """
  probe = path / f'{STAGING}probe-{uuid.uuid4().hex}'
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise errors.RunDirectoryError(
      f'cannot write to {path}: {error.strerror}; choose another model_dir or '
      'change its permissions'
    ) from error


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a whole file: readers see the old text or the new, never half."""
  staged = path.with_name(f'{STAGING}{path.name}-{uuid.uuid4().hex}')
  try:
    staged.write_text(text, encoding='utf-8')
    os.replace(staged, path)
  finally:
    staged.unlink(missing_ok=True)


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  path.write_bytes(content)


def write_json(path: pathlib.Path, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')


def append_line(path: pathlib.Path, line: str) -> None:
  """Appends in one write, so that a kill leaves a whole line or none."""
  data = (line + '\n').encode()
  try:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
      written = os.write(descriptor, data)
      if written != len(data):  # a full disk: take the half line back
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
      os.close(descriptor)
  except OSError as error:
    raise errors.RunDirectoryError(
      f'cannot write to {path}: {error.strerror}; mend that, then start the '
      'same command again'
    ) from error


def keep_lines(path: pathlib.Path, keep: Callable[[str], bool]) -> None:
  """Rewrites a file of lines without those for which `keep` is false."""
  if not path.exists():
    return
  text = path.read_text(encoding='utf-8')
  kept = [line for line in text.splitlines() if keep(line)]
  if kept != text.splitlines() or (text and not text.endswith('\n')):
    write_text(path, ''.join(line + '\n' for line in kept))


@contextlib.contextmanager
def staged_directory(final: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary directory that is renamed to `final` on success.

  The rename is the only commit point: whoever lists the parent sees all of
  `final` or nothing of it. On an error nothing is left behind.
  """
  staged = final.with_name(f'{STAGING}{final.name}-{uuid.uuid4().hex}')
  staged.mkdir(parents=True)
  try:
    yield staged
    os.rename(staged, final)
  except BaseException:
    shutil.rmtree(staged, ignore_errors=True)
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
  staged.mkdir(parents=True)
  try:
    yield staged
    for path in sorted(staged.iterdir()):
      os.replace(path, directory / path.name)
  finally:
    shutil.rmtree(staged, ignore_errors=True)


def set_aside(path: pathlib.Path, why: str) -> None:
  """Renames what is of no use any more but may be looked at."""
  os.rename(path, path.with_name(f'{path.name}.{why}-{uuid.uuid4().hex[:8]}'))


def remove_directory(path: pathlib.Path) -> None:
  """Removes a directory; it leaves every listing before its files go."""
  doomed = path.with_name(f'{STAGING}{path.name}-{uuid.uuid4().hex}')
  os.rename(path, doomed)
  shutil.rmtree(doomed)


def remove_stale(parent: pathlib.Path) -> None:
  """Removes what a killed process left half-written below `parent`."""
  for path in parent.glob(f'{STAGING}*'):
    if path.is_dir():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(directory: pathlib.Path) -> Iterator[None]:
  """Holds `directory` for this process; the kernel frees it on any death.

  Raises:
    RunDirectoryError: Another live process holds it; it is named.
  """
  descriptor = os.open(directory / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      holder = os.pread(descriptor, 500, 0).decode(errors='replace').strip()
      raise errors.RunDirectoryError(
        f'{directory} is in use by {holder}; wait for it, stop it, or choose '
        'another model_dir'
      ) from error
    started = time.strftime('%Y-%m-%d %H:%M:%S')
    holder = f'pid {os.getpid()} on {socket.gethostname()} since {started}\n'
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder.encode(), 0)
    yield
  finally:
    os.close(descriptor)

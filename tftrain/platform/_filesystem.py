"""File system operations: every change that tftrain makes to files.

All operations are methods of one object. Tests replace the object to count
operations, to fail the n-th operation, or to discard unsynced data.
"""

import errno
import os
import pathlib


class Disk:
  """Primitive file system operations; a crash falls before or after one."""

  def make_directory(self, path: pathlib.Path) -> None:
    path.mkdir()

  def write(self, path: pathlib.Path, content: bytes) -> None:
    """Creates or overwrites a file."""
    path.write_bytes(content)

  def append(self, path: pathlib.Path, content: bytes) -> None:
    """Appends in one write: a kill leaves all of `content` or nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
      written = os.write(descriptor, content)
      if written != len(content):  # a full disk: remove the partial write
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
      os.close(descriptor)

  def truncate(self, path: pathlib.Path, size: int) -> None:
    """Truncates a file to `size` bytes."""
    os.truncate(path, size)

  def rename(self, old: pathlib.Path, new: pathlib.Path) -> None:
    os.replace(old, new)

  def link(self, old: pathlib.Path, new: pathlib.Path) -> None:
    """Creates a hard link; `new` must not exist."""
    os.link(old, new)

  def touch(self, path: pathlib.Path) -> None:
    """Sets the timestamps of an existing file to now."""
    os.utime(path)

  def remove(self, path: pathlib.Path) -> None:
    path.unlink()

  def remove_directory(self, path: pathlib.Path) -> None:
    """Removes an empty directory."""
    path.rmdir()

  def sync(self, path: pathlib.Path) -> None:
    """Flushes a file's content or a directory's entries to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)

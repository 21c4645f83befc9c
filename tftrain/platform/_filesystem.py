"""Disk: the few operations by which tftrain changes a file system.

All of them are in one object, so that a test can put another in its place that
counts them, makes the n-th fail, or forgets what was never synced.
"""

import errno
import os
import pathlib


class Disk:
  """Each method is one step that a crash can fall before or after."""

  def make_directory(self, path: pathlib.Path) -> None:
    path.mkdir()

  def write(self, path: pathlib.Path, content: bytes) -> None:
    """Makes a file anew."""
    path.write_bytes(content)

  def append(self, path: pathlib.Path, content: bytes) -> None:
    """Appends in one write, so that a kill leaves all of it or nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
      written = os.write(descriptor, content)
      if written != len(content):  # a full disk: take the half back
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
      os.close(descriptor)

  def truncate(self, path: pathlib.Path, size: int) -> None:
    """Cuts a file off after so many bytes."""
    os.truncate(path, size)

  def rename(self, old: pathlib.Path, new: pathlib.Path) -> None:
    os.replace(old, new)

  def link(self, old: pathlib.Path, new: pathlib.Path) -> None:
    """Gives a file a second name, which must be free."""
    os.link(old, new)

  def touch(self, path: pathlib.Path) -> None:
    """Sets the time of a file that exists to now."""
    os.utime(path)

  def remove(self, path: pathlib.Path) -> None:
    path.unlink()

  def remove_directory(self, path: pathlib.Path) -> None:
    """Removes an empty directory."""
    path.rmdir()

  def sync(self, path: pathlib.Path) -> None:
    """Returns when a file's content, or a directory's list, survives a power
    cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)

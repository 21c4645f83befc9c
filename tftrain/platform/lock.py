"""Locks: exclusive use of a directory by one process."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import socket
import time

from absl import logging

from tftrain import errors


def holder(directory: pathlib.Path) -> str | None:
  """Returns the process that holds the lock of `directory`, or None.

  The text names its pid, its host and the time at which it took the lock.
  """
  try:
    descriptor = os.open(directory / '.lock', os.O_RDONLY)
  except FileNotFoundError:
    return None
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return os.pread(descriptor, 500, 0).decode(errors='replace').strip()
  finally:
    os.close(descriptor)
  return None


def _lock(descriptor: int, directory: pathlib.Path, what: str) -> None:
  tries = 10  # `holder` in another process locks for an instant
  while True:
    tries -= 1
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return
    except BlockingIOError as error:
      if tries:
        time.sleep(0.05)
        continue
      name = os.pread(descriptor, 500, 0).decode(errors='replace').strip()
      raise errors.RunDirectoryError(
        f'{directory} is in use by {name}; wait for it, stop it, or choose '
        f'another {what}'
      ) from error
    except OSError as error:
      logging.warning(
        '%s cannot be locked (%s): see to it that nobody else trains there.',
        directory,
        error.strerror,
      )
      return


@contextlib.contextmanager
def lock(directory: pathlib.Path, what: str = 'model_dir') -> Iterator[None]:
  """Locks `directory` for this process; the kernel unlocks it on any exit.

  Args:
    directory: The directory to lock.
    what: Name of the setting that the user should change, for the error.

  Raises:
    RunDirectoryError: If another live process holds the lock of `directory`;
      the error names that process.
  """
  descriptor = os.open(directory / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
  try:
    _lock(descriptor, directory, what)
    started = time.strftime('%Y-%m-%d %H:%M:%S')
    holder = f'pid {os.getpid()} on {socket.gethostname()} since {started}\n'
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder.encode(), 0)
    yield
  finally:
    with contextlib.suppress(OSError):  # the exit unlocks it in any case
      os.close(descriptor)

"""Leases of trials: one file per trial, renamed to take and to release it.

A file is called `0007.pending`, then `0007.running.<holder>`, then
`0007.done`, `.failed`, `.diverged` or `.pruned`. If several processes rename
the same file, one succeeds, on any file system with an atomic rename. So a
trial has one holder, and its outcome is recorded once. The holder touches its
file as a heartbeat. If the heartbeat stops for too long, or the holder is known
to be dead, any process may take the trial over, also by a rename. A holder that
finds its file gone has lost the trial and must stop at once.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import os
import pathlib
import signal
import socket
import time
import uuid

from tftrain import errors
from tftrain.platform import files

ENDED = ('done', 'failed', 'diverged', 'pruned')
"""The final states of a trial."""

HANDED = 'TFTRAIN_LEASE'
"""The environment variable that passes a lease to the process of a trial."""

_HOST = socket.gethostname().replace('.', '-').replace('_', '-')[:30]


class LostError(errors.RunDirectoryError):
  """Error of a holder whose trial another process has taken over."""


@dataclasses.dataclass(frozen=True)
class LeaseState:
  """The state of a trial, read from the name of its lease file.

  Attributes:
    state: `pending`, `running`, or one of `ENDED`.
    path: The lease file.
    holder: `<host>_<pid>_<start of that process>_<random number>` if `state` is
      `running`; '' otherwise.
  """

  state: str
  path: pathlib.Path
  holder: str = ''

  @property
  def who(self) -> str:
    host, pid, *_ = self.holder.split('_')
    return f'pid {pid} on {host}'

  def process(self) -> int | None:
    """Returns the holder's pid, 0 if it is dead, or None.

    None means that there is no holder, or that it is on another host.
    """
    if not self.holder:
      return None
    host, pid, started, _ = self.holder.split('_')
    if host != _HOST:
      return None
    return int(pid) if started == _start_of(int(pid)) else 0


def read(sweep_dir: pathlib.Path) -> dict[int, LeaseState]:
  """Returns the state of each trial by index, from one directory listing."""
  found = {}
  with files.convert_os_errors(sweep_dir):
    for name in sorted(os.listdir(sweep_dir / 'leases')):
      index, _, rest = name.partition('.')
      state, _, holder = rest.partition('.')
      if index.isdecimal():
        path = sweep_dir / 'leases' / name
        found[int(index)] = LeaseState(state, path, holder)
  return found


def find(sweep_dir: pathlib.Path, index: int) -> LeaseState:
  """Returns the state of one trial.

  Raises:
    RunDirectoryError: If the trial has no lease file.
  """
  for _ in range(50):
    seen = read(sweep_dir).get(index)
    if seen:
      return seen
    time.sleep(0.01)  # a listing may miss a file that is being renamed
  raise errors.RunDirectoryError(
    f'{sweep_dir}/leases has no file for trial {index}; make '
    f'{index:04d}.pending there to run it again'
  )


class Lease:
  """The lease that this process holds on a trial; made by `take` or `adopt`."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  @property
  def name(self) -> str:
    """The file name, which a child process needs to `adopt` the lease."""
    return self._path.name

  def beat(self) -> None:
    """Writes a heartbeat.

    Raises:
      LostError: If another process has taken the trial over.
    """
    try:
      files.touch(self._path)
    except FileNotFoundError as error:
      raise self._lost() from error
    except OSError:  # a network outage; if it lasts, the lease expires
      pass

  def check(self) -> None:
    """Raises LostError if another process has taken the trial over."""
    if not self._path.exists():
      raise self._lost()

  def end(self, state: str) -> None:
    """Releases the lease.

    Args:
      state: `pending`, or one of `ENDED`.

    Raises:
      LostError: If another process has taken the trial over.
    """
    self._rename(f'{self._path.name.partition(".")[0]}.{state}')

  def adopt(self) -> 'Lease':
    """Makes this process the holder in place of its parent."""
    self.beat()
    index = self._path.name.partition('.')[0]
    self._rename(f'{index}.running.{_holder()}')
    return self

  def _rename(self, name: str) -> None:
    new = self._path.with_name(name)
    try:
      files.rename(self._path, new)
    except FileNotFoundError as error:
      raise self._lost() from error
    self._path = new

  def _lost(self) -> LostError:
    return LostError(
      f'{self._path.name} is gone: another process took this trial over, as '
      'this one gave no sign of life for too long; nothing more is written here'
    )


def take(seen: LeaseState) -> Lease | None:
  """Takes a trial; returns None if another process was faster."""
  index = seen.path.name.partition('.')[0]
  new = seen.path.with_name(f'{index}.running.{_holder()}')
  try:
    files.touch(seen.path)  # first: a rename keeps the old time
    files.rename(seen.path, new)
  except FileNotFoundError:
    return None
  return Lease(new)


def ages(
  sweep_dir: pathlib.Path, seen: Mapping[int, LeaseState]
) -> dict[int, float]:
  """Returns the seconds since the last heartbeat of each running trial.

  Both times are the file system's, so the clocks of machines may differ.
  """
  clock = sweep_dir / 'leases' / f'.clock-{_holder()}'
  found = {}
  running = {i: s for i, s in seen.items() if s.state == 'running'}
  if not running:
    return {}
  with files.convert_os_errors(clock):
    files.write_bytes(clock, b'')
    try:
      now = clock.stat().st_mtime
    finally:
      files.remove(clock)
    for index, lease in running.items():
      with contextlib.suppress(FileNotFoundError):
        found[index] = max(0.0, now - lease.path.stat().st_mtime)
  return found


def is_free(seen: LeaseState, age: float, limit: float) -> bool:
  """Returns whether a trial may be taken, after a call of `evict`.

  Args:
    seen: The state of the trial.
    age: Seconds since its last heartbeat.
    limit: Seconds without a heartbeat after which a lease expires.
  """
  if seen.state == 'pending':
    return True
  return seen.state == 'running' and (age > limit or seen.process() == 0)


def evict(seen: LeaseState) -> None:
  """Kills a holder on this machine that is alive but sends no heartbeat."""
  pid = seen.process() if seen.state == 'running' else None
  if pid and pid != os.getpid():
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.kill(pid, signal.SIGKILL)


def _holder() -> str:
  pid = os.getpid()
  return f'{_HOST}_{pid}_{_start_of(pid)}_{uuid.uuid4().hex[:8]}'


def _start_of(pid: int) -> str:
  """Returns the start time of a process, which exposes a reused pid.

  Returns '' if the process is dead or a zombie.
  """
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text('ascii', 'replace')
  except OSError:
    return '' if pathlib.Path('/proc/self').exists() else _signalled(pid)
  fields = stat.rpartition(')')[2].split()
  return '' if fields[0] in 'ZX' else fields[19]


def _signalled(pid: int) -> str:
  """Returns 'alive' or '' on systems without /proc."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return ''
  except PermissionError:
    pass
  return 'alive'

"""Who runs which trial: one file each, renamed to take it and to give it back.

`0007.pending`, `0007.running.<holder>`, then `0007.done`, `.failed`,
`.diverged` or `.pruned`. Of all who rename the same file one succeeds, on any
file system with an atomic rename; so a trial has one holder, and its end is
noted once. A holder touches its file as a heartbeat. If none came for a while,
or the holder is known to be dead, anybody may take the trial over, by a rename
too; and who finds its file gone has lost the trial and must stop at once.
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
"""How a trial may end."""

HANDED = 'TFTRAIN_LEASE'
"""The environment variable in which an engine hands a lease to a process."""

_HOST = socket.gethostname().replace('.', '-').replace('_', '-')[:30]


class LostError(errors.RunDirectoryError):
  """The trial was taken over by somebody else."""


@dataclasses.dataclass(frozen=True)
class Seen:
  """What the file of a trial says.

  Attributes:
    state: `pending`, `running`, or how it ended.
    path: The file.
    holder: `<host>_<pid>_<start of that process>_<number>` if it is running.
  """

  state: str
  path: pathlib.Path
  holder: str = ''

  @property
  def who(self) -> str:
    host, pid, *_ = self.holder.split('_')
    return f'pid {pid} on {host}'

  def process(self) -> int | None:
    """The holder's pid, if it is a process here; 0 if it is known dead."""
    if not self.holder:
      return None
    host, pid, started, _ = self.holder.split('_')
    if host != _HOST:
      return None
    return int(pid) if started == _start_of(int(pid)) else 0


def read(sweep_dir: pathlib.Path) -> dict[int, Seen]:
  """What is known of each trial, by one listing."""
  found = {}
  with files.explained(sweep_dir):
    for name in sorted(os.listdir(sweep_dir / 'leases')):
      index, _, rest = name.partition('.')
      state, _, holder = rest.partition('.')
      if index.isdecimal():
        path = sweep_dir / 'leases' / name
        found[int(index)] = Seen(state, path, holder)
  return found


def find(sweep_dir: pathlib.Path, index: int) -> Seen:
  """The same of one trial.

  Raises:
    RunDirectoryError: Its file is gone.
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
  """A trial that is ours; made by `take`, or by `adopt`."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  @property
  def name(self) -> str:
    """What a child needs to `adopt` it."""
    return self._path.name

  def beat(self) -> None:
    """Says that the holder lives.

    Raises:
      LostError: The trial is somebody else's by now.
    """
    try:
      files.touch(self._path)
    except FileNotFoundError as error:
      raise self._lost() from error
    except OSError:  # a network that is away for a while: others will see
      pass

  def check(self) -> None:
    """Raises LostError if the trial is somebody else's by now."""
    if not self._path.exists():
      raise self._lost()

  def end(self, state: str) -> None:
    """Gives it back as `pending`, or as ended in one of the ways.

    Raises:
      LostError: The trial is somebody else's by now.
    """
    self._rename(f'{self._path.name.partition(".")[0]}.{state}')

  def adopt(self) -> 'Lease':
    """Makes this process the holder, where its parent was."""
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


def take(seen: Seen) -> Lease | None:
  """Takes a trial; None if somebody else was faster."""
  index = seen.path.name.partition('.')[0]
  new = seen.path.with_name(f'{index}.running.{_holder()}')
  try:
    files.touch(seen.path)  # first, for a rename leaves the time as it was
    files.rename(seen.path, new)
  except FileNotFoundError:
    return None
  return Lease(new)


def ages(sweep_dir: pathlib.Path, seen: Mapping[int, Seen]) -> dict[int, float]:
  """Seconds since the last heartbeat of those that run.

  Both times are the file system's, so clocks of machines may differ.
  """
  clock = sweep_dir / 'leases' / f'.clock-{_holder()}'
  found = {}
  running = {i: s for i, s in seen.items() if s.state == 'running'}
  if not running:
    return {}
  with files.explained(clock):
    files.write_bytes(clock, b'')
    try:
      now = clock.stat().st_mtime
    finally:
      files.remove(clock)
    for index, lease in running.items():
      with contextlib.suppress(FileNotFoundError):
        found[index] = max(0.0, now - lease.path.stat().st_mtime)
  return found


def is_free(seen: Seen, age: float, limit: float) -> bool:
  """Whether a trial may be taken, once `evict` has seen to its holder."""
  if seen.state == 'pending':
    return True
  return seen.state == 'running' and (age > limit or seen.process() == 0)


def evict(seen: Seen) -> None:
  """Kills a holder on this machine that lives but gives no sign of it."""
  pid = seen.process() if seen.state == 'running' else None
  if pid and pid != os.getpid():
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.kill(pid, signal.SIGKILL)


def _holder() -> str:
  pid = os.getpid()
  return f'{_HOST}_{pid}_{_start_of(pid)}_{uuid.uuid4().hex[:8]}'


def _start_of(pid: int) -> str:
  """When a process began, so that a pid used again is told apart; '' if it is
  dead, or one that only waits to be counted."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text('ascii', 'replace')
  except OSError:
    return '' if pathlib.Path('/proc/self').exists() else _signalled(pid)
  fields = stat.rpartition(')')[2].split()
  return '' if fields[0] in 'ZX' else fields[19]


def _signalled(pid: int) -> str:
  """The same where there is no /proc."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return ''
  except PermissionError:
    pass
  return 'alive'

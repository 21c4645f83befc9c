"""Local launcher: `--local_workers=N` runs a command N times on one machine."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

from tftrain import errors
from tftrain.distribute import cluster_resolver
from tftrain.platform import resource_slots
from tftrain.platform import signals as signals_lib

LOCAL_WORKER_VARIABLE = 'TFTRAIN_LOCAL_WORKER'
"""The variable that marks a local worker, which must not start workers."""

# Exit codes of a run that was asked to stop and will be resumed.
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_CONFIGURATION = 2  # an exit code that a restart cannot change

# Seconds for the other workers to notice a failure, and then to end.
_NOTICE = 10.0
_GRACE = 20.0


def run(
  count: int,
  *,
  max_restarts: int = 0,
  stop: Sequence[str] = ('SIGTERM', 'SIGINT'),
  save: Sequence[str] = (),
  stopped: int | None = None,
) -> int:
  """Runs the command of this process as `count` workers on loopback.

  Their output lines get the prefix `[number]`. If a worker fails, the others
  are stopped. Signals are forwarded to all workers.

  Args:
    count: Number of workers.
    max_restarts: Maximum number of restarts after a failure. A restart starts
      all workers again; they resume from the last checkpoint.
    stop: Names of the signals that stop.
    save: Names of the signals that save.
    stopped: Exit code of a run that was stopped, besides 143 and 130.

  Returns:
    The worst exit code: that of a failure before that of a stop before 0.

  Raises:
    ConfigError: If `count` is less than 1, or a name in `stop` or `save` is not
      a signal that can be caught.
  """
  if count < 1:
    raise errors.ConfigError(f'--local_workers={count}: give at least 1')
  stopping, saving = signals_lib.numbers_of(stop), signals_lib.numbers_of(save)
  stops = {*_STOPPED, *([] if stopped is None else [stopped])}
  codes: list[int] = []
  for attempt in range(max_restarts + 1):
    group = _Group(count, stopping)
    with signals_lib.handled(stopping | saving, group.forward_signals):
      group.start()
      codes = group.wait()
    failed = [code for code in codes if code and code not in stops]
    hopeless = _CONFIGURATION in failed or group.was_asked
    if not failed or hopeless or attempt == max_restarts:
      break
    print(
      f'workers ended with {", ".join(map(str, codes))}; starting all again '
      f'({attempt + 1} of {max_restarts})',
      file=sys.stderr,
      flush=True,
    )
  return worst(codes, stops)


def worst(codes: Sequence[int], stops: set[int]) -> int:
  """Returns the worst exit code: a failure before a stop before 0.

  >>> worst([0, 143, 1], {143})
  1
  """
  return max(codes, key=lambda code: (code != 0, code not in stops, code))


class _Group:
  """Workers that are started and stopped together."""

  def __init__(self, count: int, stopping: set[int]):
    self._stopping = stopping
    self.was_asked = False
    """True after a signal that stops."""
    self._count = count
    self._lock = threading.Lock()
    self._threads: list[threading.Thread] = []
    self._processes: list[subprocess.Popen[bytes]] = []

  def start(self) -> None:
    count, found = self._count, resource_slots.find_gpus()
    places = (
      resource_slots.make(count, len(found) // count, found) if found else []
    )
    addresses = tuple(free_addresses(count))
    for task in range(count):
      cluster = cluster_resolver.Cluster(addresses, task, '--local_workers')
      gpus = places[task].environment() if places else {}
      self._start(task, {**gpus, 'TF_CONFIG': cluster.tf_config()})

  def _start(self, task: int, environment: Mapping[str, str]) -> None:
    process = subprocess.Popen(
      [sys.executable, *sys.orig_argv[1:]],
      env={**os.environ, **environment, LOCAL_WORKER_VARIABLE: '1'},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      # Ctrl-C must reach a worker only once: forwarded by this process.
      start_new_session=True,
    )
    self._processes.append(process)
    for source, sink in (
      (process.stdout, sys.stdout.buffer),
      (process.stderr, sys.stderr.buffer),
    ):
      thread = threading.Thread(
        target=self._copy, args=(task, source, sink), daemon=True
      )
      thread.start()
      self._threads.append(thread)

  def _copy(self, task: int, source: BinaryIO, sink: BinaryIO) -> None:
    for line in source:
      with self._lock:
        sink.write(b'[%d] ' % task + line.rstrip(b'\n') + b'\n')
        sink.flush()

  def forward_signals(self, number: int, frame: Any) -> None:
    """Forwards a signal of this process to the workers."""
    del frame
    self.was_asked |= number in self._stopping
    self.send(number)

  def send(self, number: int) -> None:
    for process in self._processes:
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)

  def wait(self) -> list[int]:
    """Waits until all workers have ended; returns their exit codes."""
    failed: float | None = None
    sent = 0
    while None in [process.poll() for process in self._processes]:
      time.sleep(0.05)
      if any(process.returncode for process in self._processes):
        failed = failed or time.monotonic()
      waited = time.monotonic() - failed if failed else 0.0
      if waited > _NOTICE and sent < 1 and not self.was_asked:
        sent = 1
        self.send(signal.SIGTERM)
      if waited > _NOTICE + _GRACE and sent < 2:
        sent = 2
        self.send(signal.SIGKILL)
    for thread in self._threads:
      thread.join(timeout=5)
    codes = [process.returncode for process in self._processes]
    return [code if code >= 0 else 128 - code for code in codes]


def free_addresses(count: int) -> list[str]:
  """Returns `count` loopback addresses with free ports."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [f'127.0.0.1:{one.getsockname()[1]}' for one in sockets]


def must_launch(count: int | None) -> bool:
  """Returns whether this process must start local workers.

  A local worker must not; this call makes it end with its parent.

  Raises:
    ConfigError: If `count` is given, but TF_CONFIG describes a cluster.
  """
  if LOCAL_WORKER_VARIABLE in os.environ:
    signals_lib.end_with_parent()
    return False
  if count is not None and os.environ.get('TF_CONFIG'):
    raise errors.ConfigError(
      f'--local_workers={count} makes a cluster of its own; unset TF_CONFIG'
    )
  return count is not None

"""Rendezvous: waits until all workers of a cluster are up, with a timeout.

While TensorFlow waits for a worker, no other Python thread runs, so neither a
signal nor a timeout in Python takes effect. The workers therefore meet here
first: each worker opens its own port and waits for the ports of all others.

A worker can still die after the rendezvous. While TensorFlow connects the
workers, a watchdog process per worker kills the worker at the deadline.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

from tftrain import errors
from tftrain.distribute import cluster_resolver
from tftrain.platform import timeouts

_DEADLINE = 'TFTRAIN_CLUSTER_DEADLINE'
_PAUSE = 0.1
_TRY = 2.0


def wait(
  cluster: cluster_resolver.Cluster, environment: Mapping[str, str] = os.environ
) -> None:
  """Waits until all workers of a cluster are up.

  Args:
    cluster: The cluster.
    environment: Variables; TFTRAIN_CLUSTER_DEADLINE is the timeout in seconds.

  Raises:
    StrategyError: If a worker of `cluster` is not up before the deadline, or
      the port of this worker is in use.
  """
  seconds = timeouts.read(environment, _DEADLINE)
  end = time.monotonic() + seconds
  missing = cluster.others
  with _listening(cluster):
    while missing:
      missing = [a for a in missing if not _is_up(a, end)]
      if missing and time.monotonic() > end:
        raise errors.StrategyError(_absent(cluster, missing, seconds))
      if missing:
        time.sleep(_PAUSE)


@contextlib.contextmanager
def connecting(
  cluster: cluster_resolver.Cluster, environment: Mapping[str, str] = os.environ
) -> Iterator[None]:
  """Kills this process, with a message, if the body misses the deadline."""
  seconds = timeouts.read(environment, _DEADLINE)
  watcher = subprocess.Popen(
    [
      sys.executable,
      '-m',
      __name__,
      json.dumps([os.getpid(), seconds, cluster.task]),
      json.dumps([cluster.origin, *cluster.workers]),
    ],
    stdin=subprocess.PIPE,
    env={**environment, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  assert watcher.stdin is not None
  try:
    yield
  finally:
    watcher.stdin.close()
    watcher.wait()


def _watch(
  parent: int, seconds: float, cluster: cluster_resolver.Cluster
) -> None:
  """Runs the watchdog; its stdin closes if the parent connects or dies."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
  if select.select([sys.stdin], [], [], seconds)[0]:
    return
  end = time.monotonic() + _TRY
  gone = [a for a in cluster.others if not _is_up(a, end)]
  if select.select([sys.stdin], [], [], 0)[0]:  # the parent has connected
    return
  print(_lost(cluster, gone, seconds), file=sys.stderr, flush=True)
  if os.getppid() == parent:
    os.kill(parent, signal.SIGKILL)


def _lost(
  cluster: cluster_resolver.Cluster, gone: list[str], seconds: float
) -> str:
  who = _worker_names(cluster, gone) + ' died' if gone else 'one may have died'
  return (
    f'{cluster.this} met the others, but TensorFlow did not connect them '
    f'within {seconds:g} s: {who}; this one ends, start the same command on '
    f'all again ({_DEADLINE} is the patience in seconds)'
  )


def _worker_names(
  cluster: cluster_resolver.Cluster, addresses: list[str]
) -> str:
  named = [f'{cluster.workers.index(a)} ({a})' for a in addresses]
  return f'worker{"s" * (len(named) > 1)} {errors.brief(", ".join(named), 200)}'


def _absent(
  cluster: cluster_resolver.Cluster, missing: list[str], seconds: float
) -> str:
  return (
    f'{cluster.this} has waited {seconds:g} s for '
    f'{_worker_names(cluster, missing)}; start the same command on all, and '
    'see that their ports can be reached '
    f'({_DEADLINE} is the patience in seconds)'
  )


def _listening(cluster: cluster_resolver.Cluster) -> socket.socket:
  """Opens the port of this worker; connections to it need no answer."""
  address = cluster.workers[cluster.task]
  port = int(address.rpartition(':')[2])
  both = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
      ('', port),
      family=socket.AF_INET6 if both else socket.AF_INET,
      backlog=max(128, 2 * len(cluster.workers)),
      dualstack_ipv6=both,
    )
  except OSError as error:
    raise errors.StrategyError(
      f'{cluster.this} cannot listen on port {port} '
      f'({errors.one_line(error)}); is {address} free?'
    ) from error


def _is_up(address: str, end: float) -> bool:
  host, _, port = address.rpartition(':')
  # An address that never answers must not use up the time of the others.
  seconds = min(max(end - time.monotonic(), 0.1), _TRY)
  try:
    with socket.create_connection((host.strip('[]'), int(port)), seconds):
      return True
  except OSError:
    return False


if __name__ == '__main__':
  _parent, _seconds, _task = json.loads(sys.argv[1])
  _origin, *_workers = json.loads(sys.argv[2])
  _watch(
    _parent, _seconds, cluster_resolver.Cluster(tuple(_workers), _task, _origin)
  )

"""Runs a dispatcher or a worker of a tf.data service, for Examples.service.

python -m tftrain.data.data_service_server dispatcher --port=PORT --work_dir=DIR
python -m tftrain.data.data_service_server worker --dispatcher=HOST:PORT
"""

import argparse
from collections.abc import Sequence
import socket
import sys
from typing import Any

import tensorflow as tf

from tftrain import errors

_SERVICE = tf.data.experimental.service
_LOST_MS = 5_000  # a worker without a heartbeat for this long is lost
_BEAT_MS = 1_000
_PATIENCE_MS = 60_000


def main(arguments: Sequence[str]) -> int:
  """Serves until killed; returns 1 if the server cannot start."""
  given = _make_parser().parse_args(arguments)
  tf.config.set_visible_devices([], 'GPU')
  try:
    server = _worker(given) if given.role == 'worker' else _dispatcher(given)
  except (tf.errors.OpError, RuntimeError, ValueError) as error:
    print(f'error: {errors.one_line(error)}', file=sys.stderr)
    return 1
  print(f'{given.role} is up', flush=True)
  server.join()
  return 0


def _make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m tftrain.data.data_service_server',
    description=__doc__.partition('\n')[0],
  )
  roles = parser.add_subparsers(dest='role', required=True)
  one = roles.add_parser('dispatcher', help='knows the workers; one of it')
  one.add_argument('--port', type=int, required=True)
  one.add_argument(
    '--work_dir', required=True, help='started again there, it goes on'
  )
  many = roles.add_parser('worker', help='makes batches')
  many.add_argument('--dispatcher', required=True, help='host:port')
  many.add_argument('--port', type=int, default=0, help='any, if 0')
  many.add_argument(
    '--host', default=socket.gethostname(), help='by which others reach it'
  )
  return parser


def _dispatcher(given: Any) -> Any:
  return _SERVICE.DispatchServer(
    _SERVICE.DispatcherConfig(
      port=given.port,
      work_dir=given.work_dir,
      fault_tolerant_mode=True,
      worker_timeout_ms=_LOST_MS,
      job_gc_check_interval_ms=_BEAT_MS,
    )
  )


def _worker(given: Any) -> Any:
  return _SERVICE.WorkerServer(
    _SERVICE.WorkerConfig(
      dispatcher_address=given.dispatcher,
      worker_address=f'{given.host}:%port%',
      port=given.port,
      heartbeat_interval_ms=_BEAT_MS,
      dispatcher_timeout_ms=_PATIENCE_MS,
    )
  )


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

"""tf.data service: other machines make the batches.

Each worker of the service makes all batches in order, and the first copy of a
batch is used. A second worker adds fault tolerance, not speed.
"""

import socket
from typing import Any
import uuid

import tensorflow as tf

from tftrain import errors
from tftrain.platform import hashing
from tftrain.platform import timeouts

_SECONDS = 10.0
_WORKER_SECONDS = timeouts.DEFAULT
# The HTTP/2 connection preface, which gRPC uses, and an empty SETTINGS frame; a
# server must answer with SETTINGS.
_GREETING = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes([0, 0, 0, 4, *[0] * 5])
# A request to a dead worker stays outstanding until the dispatcher notices.
_REQUESTS = 16


def check(address: str | None, epochs: int | None) -> None:
  """Raises ConfigError if a service is given for data that ends."""
  if address is not None and epochs is not None:
    raise errors.ConfigError(
      f'Examples.service = {address!r} with data that end: they never would '
      'if a worker of the service died; leave epochs out, and the service out '
      'of evaluations'
    )


def distributed(
  dataset: tf.data.Dataset, address: str, identity: Any
) -> tf.data.Dataset:
  """Returns the same batches in the same order, made by a tf.data service.

  Args:
    dataset: Dataset that the service runs; must be infinite.
    address: `grpc://host:port` of the dispatcher.
    identity: JSON of everything the batches depend on, so that readers of
      different batches do not share a job.

  Raises:
    ConfigError: If `address` is not `grpc://host:port`.
    InputError: If no dispatcher answers at `address`, or if none of its workers
      does; TensorFlow would wait without end.
  """
  protocol, _, rest = address.partition('://')
  host, _, port = rest.rpartition(':')
  if protocol != 'grpc' or not host or not port.isdigit():
    raise errors.ConfigError(
      f"Examples.service = {address!r}; give 'grpc://host:port'"
    )
  try:
    _greet(host, int(port))
  except OSError as error:
    raise errors.InputError(
      f'no tf.data service answers at {address} ({error}); start its '
      'dispatcher, or leave Examples.service out'
    ) from error
  _try_worker(address)
  name = hashing.value_digest(identity)[:16]
  # Unique, because a job that another iterator has read does not start over.
  name += f'-{uuid.uuid4().hex[:8]}'
  served = _served(
    dataset.enumerate(),
    address,
    job_name=f'tftrain-{name}',
    max_outstanding_requests=_REQUESTS,
  )
  return _each_once(served)


def _served(
  dataset: tf.data.Dataset, address: str, **options: Any
) -> tf.data.Dataset:
  service = tf.data.experimental.service
  off = service.ShardingPolicy.OFF
  return dataset.apply(service.distribute(off, address, **options))


def _greet(host: str, port: int) -> None:
  with socket.create_connection((host, port), _SECONDS) as connection:
    connection.settimeout(_SECONDS)
    connection.sendall(_GREETING)
    if len(answer := connection.recv(9)) < 4 or answer[3] != 4:
      raise OSError('what listens there is no gRPC server')


def _try_worker(address: str) -> None:
  tried = _served(tf.data.Dataset.range(1), address)
  try:
    timeouts.within(_WORKER_SECONDS, lambda: next(iter(tried)))
  except (TimeoutError, tf.errors.OpError) as error:
    raise errors.InputError(
      f'the tf.data service at {address} has no worker that serves: '
      f'{errors.one_line(error)}; start one '
      '(python -m tftrain.data.data_service_server '
      'worker), and see that it can be reached from here'
    ) from error


def _each_once(numbered: tf.data.Dataset) -> tf.data.Dataset:
  """Returns the first copy of each batch; each worker sends them in order."""

  def note(expected: tf.Tensor, element: Any) -> Any:
    number, batch = element
    is_new = number == expected
    return tf.where(is_new, number + 1, expected), (is_new, batch)

  noted = numbered.scan(tf.constant(0, tf.int64), note)
  return noted.filter(lambda is_new, _: is_new).map(lambda _, batch: batch)

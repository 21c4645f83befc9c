"""tf.data service: other machines make the batches.

Each of its workers makes all batches, in order, and the first to bring one is
taken. So a second worker makes nothing faster: it is there when one dies.
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
# How HTTP/2, and so gRPC, begins: with it a server has to answer SETTINGS.
_GREETING = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes([0, 0, 0, 4, *[0] * 5])
# Each worker that died keeps one, until the dispatcher knows.
_REQUESTS = 16


def check(address: str | None, epochs: int | None) -> None:
  """Raises ConfigError for data that a service cannot make safely."""
  if address is not None and epochs is not None:
    raise errors.ConfigError(
      f'Examples.service = {address!r} with data that end: they never would '
      'if a worker of the service died; leave epochs out, and the service out '
      'of evaluations'
    )


def distributed(
  dataset: tf.data.Dataset, address: str, identity: Any
) -> tf.data.Dataset:
  """The same batches in the same order, made by the service at `address`.

  Args:
    dataset: What it is to run; it goes on for ever.
    address: `grpc://host:port` of the dispatcher.
    identity: All that the batches depend on (JSON): who reads others does not
      share a job.

  Raises:
    InputError: Nobody listens there, or it has no worker that answers;
      TensorFlow would wait for ever.
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
  # A job that another iterator has read from is not begun again.
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
      f'{errors.one_line(error)}; start one (python -m tftrain.data.data_service_server '
      'worker), and see that it can be reached from here'
    ) from error


def _each_once(numbered: tf.data.Dataset) -> tf.data.Dataset:
  """Each batch as soon as one worker brings it; all bring them in order."""

  def note(expected: tf.Tensor, element: Any) -> Any:
    number, batch = element
    is_new = number == expected
    return tf.where(is_new, number + 1, expected), (is_new, batch)

  noted = numbered.scan(tf.constant(0, tf.int64), note)
  return noted.filter(lambda is_new, _: is_new).map(lambda _, batch: batch)

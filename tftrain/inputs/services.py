"""tf.data service: other machines make the batches."""

import hashlib
import json
import socket
from typing import Any
import uuid

import tensorflow as tf

from tftrain import errors

_SECONDS = 10.0


def distributed(
  dataset: tf.data.Dataset, address: str, identity: Any
) -> tf.data.Dataset:
  """The same batches, made by the service at `address`, one worker in order.

  Args:
    dataset: What it is to run.
    address: `grpc://host:port` of the dispatcher.
    identity: All that the batches depend on (JSON): who reads others does not
      share a job.

  Raises:
    InputError: Nobody listens there; TensorFlow would wait for ever.
  """
  protocol, _, rest = address.partition('://')
  host, _, port = rest.rpartition(':')
  if protocol != 'grpc' or not host or not port.isdigit():
    raise errors.ConfigError(
      f"Examples.service = {address!r}; give 'grpc://host:port'"
    )
  try:
    socket.create_connection((host, int(port)), _SECONDS).close()
  except OSError as error:
    raise errors.InputError(
      f'no tf.data service answers at {address} ({error}); start its '
      'dispatcher, or leave Examples.service out'
    ) from error
  text = json.dumps(identity, sort_keys=True, default=str)
  name = hashlib.sha256(text.encode()).hexdigest()[:16]
  # A job that another iterator has read from is not begun again.
  name += f'-{uuid.uuid4().hex[:8]}'
  return dataset.apply(
    tf.data.experimental.service.distribute(
      processing_mode=tf.data.experimental.service.ShardingPolicy.OFF,
      service=address,
      job_name=f'tftrain-{name}',
      max_outstanding_requests=1,
    )
  )

"""TPU connection: raises an error after a deadline instead of hanging."""

import os

import tensorflow as tf

from tftrain import errors
from tftrain.platform import timeouts

_DEADLINE = 'TFTRAIN_TPU_DEADLINE'


def connect(name: str | None = None) -> tf.distribute.Strategy:
  """Connects to a TPU and returns its TPUStrategy.

  Args:
    name: Name or grpc:// address of the TPU; None reads the variable TPU_NAME.
      An empty name means the TPU of this machine.

  Raises:
    StrategyError: If the TPU does not exist, or is not reached before the
      deadline (the variable TFTRAIN_TPU_DEADLINE, in seconds).
  """
  name = os.environ.get('TPU_NAME', '') if name is None else name
  seconds = timeouts.read(os.environ, _DEADLINE)
  try:
    return timeouts.within(seconds, lambda: _reach(name))
  except Exception as error:
    raise errors.StrategyError(
      f'the TPU {name or "of this machine"} cannot be reached: '
      f'{errors.one_line(error)}; set TPU_NAME to its name or grpc:// address, '
      'or choose another strategy'
    ) from error


def _reach(name: str) -> tf.distribute.Strategy:
  resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name or 'local')
  if name and name != 'local':
    tf.config.experimental_connect_to_cluster(resolver)
  tf.tpu.experimental.initialize_tpu_system(resolver)
  return tf.distribute.TPUStrategy(resolver)

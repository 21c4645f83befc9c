"""Reaching a TPU: an error after a deadline, never a hang."""

import os

import tensorflow as tf

from tftrain import deadlines
from tftrain import errors

DEADLINE = 120.0
"""Seconds; the variable TFTRAIN_TPU_DEADLINE gives another number."""


def connect(name: str | None = None) -> tf.distribute.Strategy:
  """The TPUStrategy of a TPU: the one called `name`, or that TPU_NAME names.

  Raises:
    StrategyError: It is not reached before the deadline, or there is none.
  """
  name = os.environ.get('TPU_NAME', '') if name is None else name
  seconds = _deadline(os.environ.get('TFTRAIN_TPU_DEADLINE'))
  try:
    return deadlines.within(seconds, lambda: _reach(name))
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


def _deadline(text: str | None) -> float:
  try:
    return DEADLINE if text is None else float(text)
  except ValueError as error:
    raise errors.StrategyError(
      f'TFTRAIN_TPU_DEADLINE={text!r} must be a number of seconds'
    ) from error

"""tf.summary inside a step: of its step, in the train writer, or silent."""

from collections.abc import Iterator
import contextlib
import functools
from typing import Any

from absl import logging
import tensorflow as tf


@contextlib.contextmanager
def recorded(step: tf.Tensor, when: tf.Tensor) -> Iterator[None]:
  """What tf.summary is given here belongs to `step`; traceable.

  It goes to the writer that is the default when this is traced. Tags have no
  `while/` before them, though a step runs in a loop.

  Args:
    step: int64.
    when: bool; elsewhere nothing is written.
  """
  replicas = tf.distribute.get_strategy().num_replicas_in_sync

  def is_due() -> tf.Tensor:  # asked when tf.summary is called, not before
    if replicas > 1:
      _say(
        f'tf.summary in a step shows what the first of {replicas} replicas sees'
      )
    return when

  outer = tf.summary.experimental.get_step()
  tf.summary.experimental.set_step(step)
  try:
    with tf.summary.record_if(is_due), unscoped():
      yield
  finally:
    tf.summary.experimental.set_step(outer)


def unscoped() -> Any:
  """Names, and so tags, that begin anew."""
  return tf.compat.v1.name_scope('')


@contextlib.contextmanager
def silent(why: str = '') -> Iterator[None]:
  """tf.summary writes nothing here.

  Args:
    why: What to say, once, where it is called all the same.
  """

  def never() -> bool:
    if why:
      _say(f'tf.summary writes nothing {why}')
    return False

  with tf.summary.record_if(never):
    yield


@functools.cache
def _say(what: str) -> None:
  logging.warning('%s.', what)

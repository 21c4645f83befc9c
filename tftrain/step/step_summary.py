"""tf.summary inside a step: tagged with the step, or disabled."""

from collections.abc import Iterator
import contextlib
import functools
from typing import Any

from absl import logging
import tensorflow as tf


@contextlib.contextmanager
def recorded(step: tf.Tensor, when: tf.Tensor) -> Iterator[None]:
  """Records tf.summary calls in this context under `step`; traceable.

  Summaries go to the default writer at trace time. Tags have no `while/`
  prefix, although a step runs in a loop.

  Args:
    step: The step number, an int64 scalar.
    when: Whether to write summaries; a bool scalar.
  """
  replicas = tf.distribute.get_strategy().num_replicas_in_sync

  def is_due() -> tf.Tensor:  # runs only if tf.summary is called
    if replicas > 1:
      _warn(
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
  """Returns a context in which names, and so tags, have no prefix."""
  return tf.compat.v1.name_scope('')


@contextlib.contextmanager
def silent(why: str = '', noted: list[bool] | None = None) -> Iterator[None]:
  """Disables tf.summary in this context.

  Args:
    why: Reason to log, once, if tf.summary is called; '' logs nothing.
    noted: Gets an element for each call of tf.summary.
  """

  def never() -> bool:
    if noted is not None:
      noted.append(True)
    if why:
      _warn(f'tf.summary writes nothing {why}')
    return False

  with tf.summary.record_if(never):
    yield


@functools.cache
def _warn(what: str) -> None:
  logging.warning('%s.', what)

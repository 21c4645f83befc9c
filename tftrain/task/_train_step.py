"""One call of train_step: the Steps of its updates, joined into one."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.step import update_options

OF_THE_OPTIMIZER = ('gradient_norm', 'update_ratio')
"""Metrics of an optimizer; all others belong to the Loss."""


class TrainStep:
  """One call of `train_step`.

  Attributes:
    result: What `train_step` returned.
    step: The Step of all its updates, known at the end of the call's context.
  """

  result: Any
  step: update_options.Step


def combined(
  last: Any, steps: Sequence[update_options.Step]
) -> update_options.Step:
  """Combines the Steps of all updates of a train_step into one."""
  if not isinstance(last, update_options.Step):
    raise errors.TaskError(
      f'train_step returned {type(last).__name__}; return what minimize() '
      'returned'
    )
  sums = {name: v for step in steps for name, v in step.sums.items()}
  sums.update(last.sums)
  if len(steps) == 1:
    return last._replace(sums=sums)
  finite = tf.reduce_all(tf.stack([step.finite for step in steps]))
  survives = tf.stack([step.finite | step.skipped for step in steps])
  skipped = ~finite & tf.reduce_all(survives)
  loss, norm = last.loss, last.gradient_norm
  for step in reversed(steps):  # prefers the first step that is not finite
    loss = tf.where(step.finite, loss, step.loss)
    norm = tf.where(step.finite, norm, step.gradient_norm)
  sums = update_options.counted_if(finite, sums)  # all updates, or none
  return update_options.Step(finite, skipped, loss, norm, sums)

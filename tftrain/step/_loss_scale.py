"""Loss scaling: keeps float16 gradients from underflow and overflow."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

# The usual schedule (Micikevicius et al. 2018, "Mixed precision training").
INITIAL = 2.0**15
GROWTH_STEPS = 2000


class LossScale:
  """The factor of the loss in the backward pass, fixed or dynamic.

  Args:
    setting: `dynamic`, or a constant factor.
  """

  def __init__(self, setting: str | float):
    self._dynamic = setting == 'dynamic'
    start = INITIAL if isinstance(setting, str) else setting
    self._scale = tf.Variable(float(start), trainable=False)
    self._good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)

  def value(self) -> tf.Tensor:
    return self._scale.read_value()

  def adapt(self, finite: tf.Tensor) -> tf.Tensor:
    """Adapts the scale to the last step and returns whether to skip that step.

    A step that is not finite at the lowest scale, 1, is not skipped: the scale
    is not the cause.

    Args:
      finite: Whether loss and gradients of the step were finite; a bool scalar.
    """
    if not self._dynamic:
      return tf.constant(False)
    scale, good = self.value(), self._good_steps.read_value() + 1
    grows = good >= GROWTH_STEPS
    grown = tf.where(grows & tf.math.is_finite(2.0 * scale), 2.0, 1.0) * scale
    lowered = tf.maximum(scale / 2.0, 1.0)
    zero = tf.zeros([], tf.int64)
    self._scale.assign(tf.where(finite, grown, lowered))
    self._good_steps.assign(tf.where(finite & ~grows, good, zero))
    return ~finite & (scale > 1.0)

  def read_state(self) -> dict[str, tf.Tensor]:
    return {
      'scale': self._scale.read_value(),
      'good_steps': self._good_steps.read_value(),
    }

  def write_state(self, state: Mapping[str, Any]) -> None:
    self._scale.assign(state['scale'])
    self._good_steps.assign(state['good_steps'])

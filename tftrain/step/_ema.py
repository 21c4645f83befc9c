"""Exponential moving average (EMA) of the weights.

After Polyak and Juditsky 1992.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftrain.interop import mixed_precision
from tftrain.interop import variables as variables_lib


class Average:
  """The EMA of a list of variables.

  Args:
    decay: The decay in `average = decay * average + (1 - decay) * variable`.
    variables: The variables to average.
  """

  def __init__(self, decay: float, variables: Sequence[Any]):
    self._rate = 1.0 - decay
    self._followed = list(variables)
    self.variables = [
      tf.Variable(_initial_average(v), trainable=False, name='ema')
      for v in variables
    ]

  def start(self) -> None:
    """Sets the averages to the current weights."""
    for average, variable in self._pairs():
      average.assign(tf.cast(variable.read_value(), average.dtype))

  def follow(self) -> None:
    """Moves the averages towards the updated weights; in replica context."""
    for average, variable in self._pairs():
      value = tf.cast(variable.read_value(), average.dtype)
      gap = value - average.read_value()
      average.assign_add(tf.cast(self._rate, gap.dtype) * gap)

  def _pairs(self) -> list[tuple[Any, Any]]:
    return [
      (average, variables_lib.raw(variable))
      for average, variable in zip(self.variables, self._followed, strict=True)
    ]


def _initial_average(variable: Any) -> tf.Tensor:
  # A half-precision average would lose small changes to rounding.
  return tf.zeros(variable.shape, mixed_precision.full(variable.dtype))

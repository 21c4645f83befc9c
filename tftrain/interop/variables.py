"""Variables: from Keras's to TensorFlow's, and their values."""

from typing import Any

import keras
import tensorflow as tf

VARIABLE = keras.Variable | tf.Variable


def raw(variable: Any) -> Any:
  """The tf.Variable behind a Keras variable; others are returned as is."""
  return variable.value if isinstance(variable, keras.Variable) else variable


def value(quantity: Any) -> Any:
  """The value of a variable, tensor or float, on the host."""
  quantity = raw(quantity)
  return quantity.numpy() if hasattr(quantity, 'numpy') else quantity

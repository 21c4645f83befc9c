"""Variable access: the tf.Variable behind a Keras variable, and host values."""

from typing import Any

import keras
import tensorflow as tf

VARIABLE = keras.Variable | tf.Variable


def raw(variable: Any) -> Any:
  """Returns the tf.Variable of a Keras variable; other objects unchanged."""
  return variable.value if isinstance(variable, keras.Variable) else variable


def value(quantity: Any) -> Any:
  """Returns the value of a variable, tensor or float on the host."""
  quantity = raw(quantity)
  return quantity.numpy() if hasattr(quantity, 'numpy') else quantity

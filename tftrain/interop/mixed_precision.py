"""Mixed precision: the float32 dtype that sums and averages need."""

from typing import Any

import tensorflow as tf


def full(dtype: Any) -> tf.DType:
  """Returns the accumulation dtype of `dtype`: float32 for half precision."""
  dtype = tf.as_dtype(dtype)
  return tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype


def in_full(tensor: tf.Tensor) -> tf.Tensor:
  """Casts half precision to float32, as sums and loss scales overflow it."""
  return tf.cast(tensor, full(tensor.dtype))

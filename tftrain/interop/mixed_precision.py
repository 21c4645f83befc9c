"""Half precision, and the float32 that sums and averages need."""

from typing import Any

import tensorflow as tf


def full(dtype: Any) -> tf.DType:
  """The dtype to add up values of `dtype` in: float32 for halves."""
  dtype = tf.as_dtype(dtype)
  return tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype


def in_full(tensor: tf.Tensor) -> tf.Tensor:
  """The tensor, in float32 at least: sums and scales overflow halves."""
  return tf.cast(tensor, full(tensor.dtype))

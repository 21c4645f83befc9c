"""Gradient clipping: by global norm, by value, and adaptive (AGC)."""

from collections.abc import Sequence

import tensorflow as tf

from tftrain.interop import mixed_precision
from tftrain.step import update_options

# Lets weights move that start at zero (Brock et al. 2021, section 4.1).
_SMALLEST_WEIGHT = 1e-3


def clip(
  options: update_options.Update,
  gradients: Sequence[tf.Tensor],
  weights: Sequence[tf.Tensor],
  norm: tf.Tensor,
) -> list[tf.Tensor]:
  """Clips the mean gradients of a global batch.

  Args:
    options: The limits; those that are set apply in the order value, adaptive,
      norm.
    gradients: One tensor per variable, or per bucket without adaptive clipping.
    weights: The values of the same variables.
    norm: Global norm of `gradients`.

  Returns:
    The clipped gradients, in the same order.
  """
  clipped = list(gradients)
  if options.clip_value is not None:
    limit = options.clip_value
    clipped = [tf.clip_by_value(g, -limit, limit) for g in clipped]
  if options.clip_adaptive is not None:
    clipped = [
      _adaptive(g, tf.cast(w, g.dtype), options.clip_adaptive)
      for g, w in zip(clipped, weights, strict=True)
    ]
  if options.clip_norm is not None:
    if options.clip_value is not None or options.clip_adaptive is not None:
      norm = global_norm(clipped)
    factor = options.clip_norm / tf.maximum(norm, options.clip_norm)
    clipped = [g * tf.cast(factor, g.dtype) for g in clipped]
  return clipped


def is_asked(options: update_options.Update) -> bool:
  limits = (options.clip_norm, options.clip_value, options.clip_adaptive)
  return any(limit is not None for limit in limits)


def global_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
  """Returns the L2 norm over all entries of all tensors, a float32 scalar."""
  halves = [
    tf.cast(tf.nn.l2_loss(mixed_precision.in_full(tensor)), tf.float32)
    for tensor in tensors
  ]
  return tf.sqrt(2.0 * tf.add_n(halves))


def _adaptive(
  gradient: tf.Tensor, weight: tf.Tensor, limit: float
) -> tf.Tensor:
  """Clips each unit's gradient norm to `limit` times its weight norm."""
  largest = limit * tf.maximum(_unit_norm(weight), _SMALLEST_WEIGHT)
  norm = _unit_norm(gradient)
  one = tf.ones([], norm.dtype)
  return gradient * tf.minimum(one, largest / tf.maximum(norm, 1e-6))


def _unit_norm(tensor: tf.Tensor) -> tf.Tensor:
  """Returns the norm over the inputs of each output unit (the last axis)."""
  rank = tensor.shape.rank
  axes = list(range(rank - 1)) if rank > 1 else None
  return tf.sqrt(tf.reduce_sum(tensor**2, axes, keepdims=True))

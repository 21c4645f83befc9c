"""Loss: per-example values, summed over replicas and divided once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain import errors


class Loss:
  """The per-example losses and metrics that `Task.loss` returns.

  The library adds up `values * weights` over the replicas and divides once by
  the sum of the weights. So one replica, many replicas and a ragged last batch
  all give the same mean. The metrics are averaged the same way, with the same
  weights.

  Args:
    values: The loss of each example, `[batch]`. A scalar is taken for the mean
      over the batch, which is correct only if all examples weigh the same.
    weights: The weight of each example, `[batch]`; None means 1.
    **metrics: Further values to average, each `[batch]` or a scalar mean.
  """

  def __init__(self, values: Any, weights: Any = None, **metrics: Any):
    self.values = values
    self.weights = weights
    self.metrics = metrics


class Sums(NamedTuple):
  """A Loss added up over this replica's rows; all scalars are float32.

  Attributes:
    objective: Sum of the weighted losses and of the regularization. The latter
      is multiplied by `weight`, so that it counts once after the division.
    weight: Sum of the weights.
    metrics: Sum of each metric's weighted values; `loss` is among them.
  """

  objective: tf.Tensor
  weight: tf.Tensor
  metrics: Mapping[str, tf.Tensor]


def add_up(loss: Any, rows: tf.Tensor, regularization: Any = 0.0) -> Sums:
  """Adds up the Loss of `rows` examples.

  Args:
    loss: The value that `Task.loss` returned.
    rows: Number of examples, a scalar.
    regularization: Sum of the regularizers, a scalar.

  Raises:
    TaskError: If `loss` is not a Loss, has a metric with a reserved name, or
      holds strings or values that are not `[batch]`.
  """
  if not isinstance(loss, Loss):
    raise errors.TaskError(
      f'loss() returned {type(loss).__name__}; return tftrain.Loss(values) '
      'with values [batch]'
    )
  for name in ('loss', 'gradient_norm', 'update_ratio'):
    if name in loss.metrics:
      raise errors.TaskError(
        f'loss() returned a metric called `{name}`; that name is taken, rename '
        'it'
      )
  weights = None
  weight = tf.cast(rows, tf.float32)
  if loss.weights is not None:
    weights = _per_example('weights', loss.weights, rows)
    if weights.shape.rank == 0:
      raise errors.TaskError('Loss weights is a scalar; give one per example')
    weight = tf.reduce_sum(weights)
  data_loss = _weighted_sum('values', loss.values, weights, weight, rows)
  objective = data_loss + tf.cast(regularization, tf.float32) * weight
  metrics = {'loss': objective}
  for name, values in loss.metrics.items():
    metrics[name] = _weighted_sum(name, values, weights, weight, rows)
  return Sums(objective, weight, metrics)


def _weighted_sum(
  name: str,
  values: Any,
  weights: tf.Tensor | None,
  weight: tf.Tensor,
  rows: tf.Tensor,
) -> tf.Tensor:
  values = _per_example(name, values, rows)
  if values.shape.rank == 0:
    # The mean over an empty share of a batch is NaN and counts as 0.
    return tf.where(weight > 0, values, 0.0) * weight
  if weights is None:
    return tf.reduce_sum(values)
  return tf.reduce_sum(values * weights)


def _per_example(name: str, values: Any, rows: tf.Tensor) -> tf.Tensor:
  values = tf.convert_to_tensor(values)
  if values.dtype == tf.string:
    raise errors.TaskError(f'Loss {name} is string; give numbers')
  values = tf.cast(values, tf.float32)
  if values.shape.rank not in (0, 1):
    raise errors.TaskError(
      f'Loss {name} has shape {values.shape}; it must be [batch]: one number '
      'per example (average or sum over the other dimensions)'
    )
  expected = tf.get_static_value(rows)
  if values.shape.rank == 1 and expected not in (None, values.shape[0]):
    if values.shape[0] is not None:
      raise errors.TaskError(
        f'Loss {name} has {values.shape[0]} entries for {expected} examples; '
        'it must be [batch]: one number per example'
      )
  return values

"""Loss: weighted values of any shape; each term has its own denominator.

The objective of a step is `sum_k factor_k * N_k / D_k` over the terms of its
loss. `N_k` is the sum of the weighted values of a term and `D_k` the sum of its
weights, both over the global batch: all replicas and micro-batches.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import replica_batch
from tftrain.interop import layer_losses

RESERVED = ('loss', 'gradient_norm', 'update_ratio')
"""Names of metrics that the library reports itself."""


class Term(NamedTuple):
  """One term of a Loss.

  Attributes:
    factor: The number by which the mean of the term is multiplied.
    values: `[batch, ...]`, or a scalar mean over the batch.
    weights: None, or weights that broadcast to `values`.
  """

  factor: Any
  values: Any
  weights: Any


class Loss:
  """The values and metrics that `Task.loss` returns.

  The library adds up `values * weights` over all replicas and micro-batches
  and divides once by the sum of the weights. So one replica, many replicas,
  accumulation and a ragged last batch all give the same mean. Values of weight
  0 count nowhere, even if they are NaN. If all weights of a global batch are 0,
  the loss and its gradient are 0.

  Losses can be added and multiplied by a number: each term keeps its own
  denominator, as in `Loss(per_token, token_weights) + 0.1 * Loss(per_image)`.

  Args:
    values: The loss of each example or element, `[batch, ...]`. A scalar is
      taken for the mean over the rows of the batch.
    weights: Weights that broadcast to `values` from the left, so that `[batch]`
      weights apply per row; None means 1.
    **metrics: Further values to average, each `[batch, ...]` or a scalar mean,
      with the same weights where they broadcast.
  """

  def __init__(self, values: Any, weights: Any = None, **metrics: Any):
    self.terms = (Term(1.0, values, weights),)
    self.weighted_metrics: dict[str, tuple[Any, Any]] = {
      name: (value, weights) for name, value in metrics.items()
    }

  @property
  def values(self) -> Any:
    """The values of the first term."""
    return self.terms[0].values

  @property
  def weights(self) -> Any:
    """The weights of the first term."""
    return self.terms[0].weights

  @property
  def metrics(self) -> dict[str, Any]:
    """Name -> values of each metric."""
    return {name: value for name, (value, _) in self.weighted_metrics.items()}

  def __mul__(self, factor: Any) -> 'Loss':
    return self._with(term._replace(factor=term.factor * factor)
                      for term in self.terms)  # fmt: skip

  __rmul__ = __mul__

  def __add__(self, other: Any) -> 'Loss':
    if not isinstance(other, Loss):
      if isinstance(other, int | float) and other == 0:  # for sum()
        return self
      return NotImplemented
    both = sorted(set(self.metrics) & set(other.metrics))
    if both:
      raise errors.TaskError(
        f'two Losses that are added both have a metric {both[0]!r}; rename one'
      )
    added = self._with((*self.terms, *other.terms))
    added.weighted_metrics.update(other.weighted_metrics)
    return added

  __radd__ = __add__

  def _with(self, terms: Any) -> 'Loss':
    made = Loss(None)
    made.terms = tuple(terms)
    made.weighted_metrics = dict(self.weighted_metrics)
    return made


class Sums(NamedTuple):
  """A Loss added up over one replica's rows; all scalars are float32.

  Attributes:
    numerators: Of each term, the factor times the sum of the weighted values.
    denominators: Of each term, the sum of the weights.
    metrics: Name -> (weighted sum, sum of weights) of the metrics.
  """

  numerators: Sequence[tf.Tensor]
  denominators: Sequence[tf.Tensor]
  metrics: Mapping[str, tuple[tf.Tensor, tf.Tensor]]


def call(
  loss: Callable[..., Any], rows: Any, *, training: bool, passes: Any = 1
) -> Sums:
  """Calls a loss and adds up what it returns and what its layers add.

  Args:
    loss: `loss(batch, training)` that returns a `Loss`.
    rows: The rows of one replica, or a micro-batch of them.
    training: Whether this is a training step.
    passes: Number of calls in a step: replicas times micro-batches.
  """
  with layer_losses.collected() as collected:
    result = loss(rows, training=training)
  count = replica_batch.batch_size(rows)
  return add_up(result, count, collected.penalties(), passes)


def add_up(
  loss: Any,
  rows: tf.Tensor,
  penalties: layer_losses.Penalties = layer_losses.NONE,
  passes: Any = 1,
) -> Sums:
  """Adds up the Loss of `rows` examples.

  Weight regularizers count once: they are multiplied by the denominator of the
  first term, and divided by the global one. A scalar that a layer adds is a
  mean over the rows; terms that are not scalars are summed over all rows.

  Args:
    loss: The value that `Task.loss` returned.
    rows: Number of examples, a scalar.
    penalties: What the layers added.
    passes: Number of calls in a step: replicas times micro-batches.

  Raises:
    TaskError: If `loss` is not a Loss, has a metric with a reserved name, or
      holds strings, or values or weights that do not fit the batch.
  """
  if tf.is_tensor(loss):
    loss = Loss(loss)
  if not isinstance(loss, Loss):
    raise errors.TaskError(
      f'loss() returned {type(loss).__name__}; return tftrain.Loss(values) '
      'with values [batch]'
    )
  for name in RESERVED:
    if name in loss.metrics:
      raise errors.TaskError(
        f'loss() returned a metric called `{name}`; that name is taken, rename '
        'it'
      )
  pairs = [
    _weighted_sum('values', term.values, term.weights, rows)
    for term in loss.terms
  ]
  numerators = [
    value * tf.cast(term.factor, tf.float32)
    for term, (value, _) in zip(loss.terms, pairs, strict=True)
  ]
  denominators = [weight for _, weight in pairs]
  count = tf.cast(rows, tf.float32)
  numerators[0] += tf.cast(penalties.weights, tf.float32) * denominators[0]
  if penalties.means is not None:
    penalty = tf.where(count > 0, penalties.means, 0.0) * count
    if len(numerators) == 1 and _counts_rows(loss.terms[0]):
      numerators[0] += penalty
    else:
      numerators.append(penalty)
      denominators.append(count)
  if penalties.sums is not None:
    numerators.append(penalties.sums)
    denominators.append(1.0 / tf.cast(passes, tf.float32))
  metrics = {
    name: _weighted_sum(name, values, weights, rows)
    for name, (values, weights) in loss.weighted_metrics.items()
  }
  return Sums(numerators, denominators, metrics)


def _counts_rows(term: Term) -> bool:
  """Returns whether the denominator of a term is its number of rows."""
  rank = tf.convert_to_tensor(term.values).shape.rank
  return term.weights is None and rank in (0, 1)


def reported(
  numerators: Sequence[tf.Tensor], denominators: Sequence[tf.Tensor]
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
  """Returns the sums of the loss as metrics: `loss`, or its parts `loss#k`.

  Parts are summed after each was divided by its own denominator.
  """
  pairs = list(zip(numerators, denominators, strict=True))
  if len(pairs) == 1:
    return {'loss': pairs[0]}
  return {f'loss#{index}': pair for index, pair in enumerate(pairs)}


def total(
  numerators: Sequence[tf.Tensor], denominators: Sequence[tf.Tensor]
) -> tf.Tensor:
  """Returns the sum of the means of all terms; a term without weight is 0."""
  means = [
    tf.math.divide_no_nan(numerator, denominator)
    for numerator, denominator in zip(numerators, denominators, strict=True)
  ]
  return means[0] if len(means) == 1 else tf.add_n(means)


def _weighted_sum(
  name: str, values: Any, weights: Any, rows: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns (sum of the weighted values, sum of the weights)."""
  values = _per_row(name, values, rows)
  if weights is None:
    count = tf.cast(rows, tf.float32)
    if values.shape.rank == 0:
      # The mean over an empty share of a batch is NaN and counts as 0.
      return tf.where(count > 0, values, 0.0) * count, count
    if values.shape.rank == 1:
      return tf.reduce_sum(values), count
    return tf.reduce_sum(values), tf.cast(tf.size(values), tf.float32)
  weights = _per_row('weights', weights, rows)
  if weights.shape.rank == 0:
    raise errors.TaskError('Loss weights is a scalar; give one per example')
  if values.shape.rank == 0:
    # A mean that is already made: its rows weigh alike, or not at all.
    weight = tf.reduce_sum(weights)
    return tf.where(weight != 0, values, 0.0) * weight, weight
  weights = _broadcast(name, weights, values)
  # A value of weight 0 may be NaN, and so may its gradient.
  counted = tf.where(weights != 0, values, tf.zeros_like(values))
  return tf.reduce_sum(counted * weights), tf.reduce_sum(weights)


def _broadcast(name: str, weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
  """Returns weights of the shape of `values`, expanded from the left."""
  missing = values.shape.rank - weights.shape.rank
  if missing < 0:
    shape = weights.shape[values.shape.rank :]
    if any(size != 1 for size in shape):
      raise errors.TaskError(
        f'Loss weights has shape {weights.shape}, but {name} has shape '
        f'{values.shape}; weights must broadcast to the values'
      )
    axes = list(range(values.shape.rank, weights.shape.rank))
    weights = tf.squeeze(weights, axes)
  for _ in range(max(missing, 0)):
    weights = weights[..., tf.newaxis]
  for size, expected in zip(weights.shape, values.shape, strict=True):
    if None not in (size, expected) and size not in (1, expected):
      raise errors.TaskError(
        f'Loss weights has shape {weights.shape}, but {name} has shape '
        f'{values.shape}; weights must broadcast to the values'
      )
  return tf.broadcast_to(weights, tf.shape(values))


def _per_row(name: str, values: Any, rows: tf.Tensor) -> tf.Tensor:
  values = tf.convert_to_tensor(values)
  if values.dtype == tf.string:
    raise errors.TaskError(f'Loss {name} is string; give numbers')
  values = tf.cast(values, tf.float32)
  if values.shape.rank is None:
    raise errors.TaskError(
      f'Loss {name} has an unknown rank; use tf.ensure_shape'
    )
  expected = tf.get_static_value(rows)
  if values.shape.rank and expected not in (None, values.shape[0]):
    if values.shape[0] is not None:
      raise errors.TaskError(
        f'Loss {name} has {values.shape[0]} entries for {expected} examples; '
        'it must be [batch, ...]: one entry per example'
      )
  return values

"""Loss: weighted values of any shape; each term has its own denominator.

The objective of a step is `sum_k factor_k * N_k / D_k` over the terms of its
loss. `N_k` is the sum of the weighted values of a term and `D_k` the sum of its
weights (or of what Keras counts), both over the global batch: all replicas and
micro-batches.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain import errors
from tftrain.interop import layer_losses

RESERVED = ('loss', 'gradient_norm', 'update_ratio')
"""Names of metrics that the library reports itself."""


class Term(NamedTuple):
  """One term of a Loss, or a metric.

  Attributes:
    values: `[batch, ...]`, or a scalar mean over the batch.
    weights: None, or weights that broadcast to `values`.
    counts: What the denominator adds up, of the shape of weights; None means
      the weights.
    factor: The number by which the mean of the term is multiplied.
    reduction: `mean`; `sum` for the denominator 1; or `none` for the gradient
      of the sum beside a report of the mean, as in Keras.
  """

  values: Any
  weights: Any = None
  counts: Any = None
  factor: Any = 1.0
  reduction: str = 'mean'


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
    self.terms = (Term(values, weights),)
    self.metric_terms = {
      name: Term(value, weights) for name, value in metrics.items()
    }

  @classmethod
  def of_term(cls, term: Term, metrics: Mapping[str, Term]) -> 'Loss':
    """Returns a Loss of one term, whose metrics have weights of their own."""
    made = cls(None)
    made.terms = (term,)
    made.metric_terms = dict(metrics)
    return made

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
    return {name: term.values for name, term in self.metric_terms.items()}

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
    added.metric_terms.update(other.metric_terms)
    return added

  __radd__ = __add__

  def _with(self, terms: Any) -> 'Loss':
    made = Loss(None)
    made.terms = tuple(terms)
    made.metric_terms = dict(self.metric_terms)
    return made


class Sums(NamedTuple):
  """A Loss added up over one replica's rows; all scalars are float32.

  Attributes:
    numerators: Of each term, the factor times the sum of the weighted values.
    denominators: Of each term, the sum of the weights.
    counts: The denominators of the report.
    metrics: Name -> (weighted sum, sum of weights) of the metrics.
  """

  numerators: Sequence[tf.Tensor]
  denominators: Sequence[tf.Tensor]
  counts: Sequence[tf.Tensor]
  metrics: Mapping[str, tuple[tf.Tensor, tf.Tensor]]

  @property
  def total(self) -> tf.Tensor:
    """The sum of the means of all terms; a term without weight is 0."""
    means = [
      tf.math.divide_no_nan(numerator, count)
      for numerator, count in zip(self.numerators, self.counts, strict=True)
    ]
    return means[0] if len(means) == 1 else tf.add_n(means)

  @property
  def reported(self) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """The metrics, and the loss as `loss` or in parts, `loss#k`.

    Parts are summed after each was divided by its own denominator.
    """
    pairs = list(zip(self.numerators, self.counts, strict=True))
    if len(pairs) == 1:
      return {'loss': pairs[0], **self.metrics}
    parts = {f'loss#{index}': pair for index, pair in enumerate(pairs)}
    return {**parts, **self.metrics}


ONLY = ''
"""The key of the Sums of a function that returns one Loss."""


def add_up_all(
  result: Any, rows: tf.Tensor, penalties: layer_losses.Penalties, passes: Any
) -> dict[str, Sums]:
  """Adds up what a loss returned.

  Args:
    result: A `Loss`, or name -> `Loss`: the losses of one forward pass. What
      its layers added counts in each of them.
    rows: Number of examples, a scalar.
    penalties: What the layers added.
    passes: Number of calls in a step: replicas times micro-batches.

  Returns:
    Name -> Sums; the name is `ONLY` if `result` is one Loss.
  """
  named = result if isinstance(result, Mapping) else {ONLY: result}
  if not named:
    raise errors.TaskError('loss() returned {}; return a Loss, or name -> Loss')
  return {
    str(name): add_up(one, rows, penalties, passes)
    for name, one in named.items()
  }


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
  loss = _as_loss(loss)
  once = 1.0 / tf.cast(passes, tf.float32)
  numerators, denominators, counts = [], [], []
  for term in loss.terms:
    if term.weights is not None and _rank(term.values) == 0:
      raise errors.TaskError(
        'Loss has weights beside a scalar, whose mean is already made; give '
        'values [batch, ...]'
      )
    value, count = _weighted_sum('values', term, rows)
    numerators.append(value * tf.cast(term.factor, tf.float32))
    denominators.append(count if term.reduction == 'mean' else once)
    counts.append(once if term.reduction == 'sum' else count)
  size = tf.cast(rows, tf.float32)
  extra: list[tuple[tf.Tensor, tf.Tensor]] = []
  regularizers = tf.cast(penalties.weights, tf.float32)
  if loss.terms[0].reduction == 'none':
    extra.append((regularizers * once, once))
  else:
    numerators[0] += regularizers * denominators[0]
  if penalties.means is not None:
    penalty = tf.where(size > 0, penalties.means, 0.0) * size
    if len(numerators) == 1 and _counts_rows(loss.terms[0]):
      numerators[0] += penalty
    else:
      extra.append((penalty, size))
  if penalties.sums is not None:
    extra.append((penalties.sums, once))
  added = [value for value, _ in extra]
  divisors = [divisor for _, divisor in extra]
  metrics = {}
  for name, term in loss.metric_terms.items():
    value, count = _weighted_sum(name, term, rows)
    metrics[name] = (value, once if term.reduction == 'sum' else count)
  return Sums(
    [*numerators, *added],
    [*denominators, *divisors],
    [*counts, *divisors],
    metrics,
  )


def _as_loss(loss: Any) -> Loss:
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
  return loss


def _counts_rows(term: Term) -> bool:
  """Returns whether the denominator of a term is its number of rows."""
  plain = term.weights is None and term.counts is None
  return plain and term.reduction == 'mean' and _rank(term.values) in (0, 1)


def _rank(values: Any) -> int | None:
  rank: int | None = tf.convert_to_tensor(values).shape.rank
  return rank


def _weighted_sum(
  name: str, term: Term, rows: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns (sum of the weighted values, sum of what counts)."""
  values = _per_row(name, term.values, rows)
  if term.weights is None:
    count = tf.cast(rows, tf.float32)
    if values.shape.rank == 0:
      # The mean over an empty share of a batch is NaN and counts as 0.
      return tf.where(count > 0, values, 0.0) * count, count
    if values.shape.rank == 1:
      return tf.reduce_sum(values), count
    return tf.reduce_sum(values), tf.cast(tf.size(values), tf.float32)
  weights = _per_row('weights', term.weights, rows)
  if weights.shape.rank == 0:
    raise errors.TaskError('Loss weights is a scalar; give one per example')
  if values.shape.rank == 0:
    # A metric whose mean is already made: all rows weigh alike.
    weight = tf.reduce_sum(weights)
    return tf.where(weight != 0, values, 0.0) * weight, weight
  weights = _broadcast(name, weights, values)
  # A value of weight 0 may be NaN, and so may its gradient.
  counted = tf.where(weights != 0, values, tf.zeros_like(values))
  counts = weights
  if term.counts is not None:
    counts = _broadcast(name, _per_row('counts', term.counts, rows), values)
  return tf.reduce_sum(counted * weights), tf.reduce_sum(counts)


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

"""Gradient to weight: reduce over replicas, divide once, check, apply."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tftrain import buckets
from tftrain import errors
from tftrain import losses
from tftrain import strategies
from tftrain import variables as variables_lib


class Step(NamedTuple):
  """What one update did; scalars, the same on every replica.

  Attributes:
    finite: Whether loss and gradients were finite; if not, nothing changed.
    loss: The mean loss of the global batch.
    gradient_norm: Global norm of the mean gradient.
    sums: Metric name -> (weighted sum, sum of weights) over the global batch.
  """

  finite: tf.Tensor
  loss: tf.Tensor
  gradient_norm: tf.Tensor
  sums: Mapping[str, tuple[tf.Tensor, tf.Tensor]]


class Update:
  """One optimizer and the variables it trains.

  Args:
    optimizer: A Keras optimizer, not built yet or built for `trained`.
    trained: Name -> variable, those that a gradient reaches.
    bucketed: Whether small variables may be updated as one flat variable.
  """

  def __init__(
    self, optimizer: Any, trained: Mapping[str, Any], *, bucketed: bool
  ):
    _check_options(optimizer)
    self.optimizer = optimizer
    self.trained = dict(trained)
    self._names = {id(variable): name for name, variable in trained.items()}
    listed = list(trained.values())
    small = (
      buckets.small_variables(optimizer, listed)
      if bucketed and not optimizer.built
      else []
    )
    self.bucket = buckets.Bucket(small) if small else None
    inside = {id(variable) for variable in small}
    self.alone = [variable for variable in listed if id(variable) not in inside]
    flat = [self.bucket.flat] if self.bucket else []
    if not optimizer.built:
      optimizer.build(flat + self.alone)
    self.configured_rate = float(buckets.value(optimizer.learning_rate))

  def refresh(self) -> None:
    """Takes over weights that were assigned since the last block of steps."""
    if self.bucket:
      self.bucket.refresh()

  def pack(
    self, gradients: Sequence[tf.Tensor], trained: Sequence[Any]
  ) -> list[tf.Tensor]:
    """Brings gradients into the order in which `apply` wants them."""
    by_id = {
      id(v): tf.convert_to_tensor(g)
      for v, g in zip(trained, gradients, strict=True)
    }
    packed = []
    if self.bucket:
      packed = [self.bucket.join([by_id[id(v)] for v in self.bucket.variables])]
    return packed + [by_id[id(v)] for v in self.alone if id(v) in by_id]

  def apply(self, packed: Sequence[tf.Tensor], trained: Sequence[Any]) -> None:
    """Applies packed gradients, inside `strategy.run`."""
    chosen = {id(variable) for variable in trained}
    targets = [buckets.raw(v) for v in self.alone if id(v) in chosen]
    if self.bucket:
      targets = [self.bucket.flat, *targets]
    self.optimizer.apply(packed, targets)
    if self.bucket:
      self.bucket.scatter()

  # State, under names per variable, so that bucketing may change freely.

  def read_state(self) -> dict[str, tf.Tensor]:
    state = {
      'iterations': buckets.raw(self.optimizer.iterations).read_value(),
      'configured_learning_rate': tf.constant(self.configured_rate),
    }
    rate = getattr(self.optimizer, '_learning_rate', None)
    if isinstance(rate, buckets.VARIABLE):
      state['learning_rate'] = buckets.raw(rate).read_value()
    for slot, name, variable in self._slots():
      value = buckets.raw(variable).read_value()
      if name == _BUCKET and self.bucket:
        parts = self.bucket.split(value)
        for member, part in zip(self._bucket_names(), parts, strict=True):
          state[f'{slot}/{member}'] = part
      else:
        state[f'{slot}/{name}'] = value
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    buckets.raw(self.optimizer.iterations).assign(state['iterations'])
    rate = getattr(self.optimizer, '_learning_rate', None)
    unchanged = state.get('configured_learning_rate') == self.configured_rate
    if isinstance(rate, buckets.VARIABLE) and unchanged:
      buckets.raw(rate).assign(state['learning_rate'])
    for slot, name, variable in self._slots():
      if name == _BUCKET and self.bucket:
        parts = [state[f'{slot}/{member}'] for member in self._bucket_names()]
        value = self.bucket.join([tf.convert_to_tensor(part) for part in parts])
      else:
        value = state[f'{slot}/{name}']
      buckets.raw(variable).assign(value)

  def _slots(self) -> Iterator[tuple[str, str, Any]]:
    references = [(self._names[id(v)], v) for v in self.alone]
    if self.bucket:
      references = [(_BUCKET, self.bucket.flat), *references]
    return variables_lib.optimizer_slots(self.optimizer, references)

  def _bucket_names(self) -> list[str]:
    assert self.bucket is not None
    return [self._names[id(variable)] for variable in self.bucket.variables]


_BUCKET = '(bucket)'


def _check_options(optimizer: Any) -> None:
  """Refuses what Keras does on its own side of a step, where it goes wrong."""
  name = type(optimizer).__name__
  scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
  if scaled or optimizer.loss_scale_factor:
    raise errors.TaskError(
      f'{name} would divide gradients by a loss scale that was never '
      'multiplied in; take the optimizer without LossScaleOptimizer and '
      'without loss_scale_factor'
    )
  if tf.distribute.get_strategy().num_replicas_in_sync == 1:
    return
  for option in ('gradient_accumulation_steps', 'ema_overwrite_frequency'):
    if getattr(optimizer, option, None):
      raise errors.TaskError(
        f'{name}({option}=...) does not work on several replicas; leave it out'
      )


def minimize(
  update: Update,
  loss: Callable[..., Any],
  batch: Any,
  trained: Sequence[Any],
  regularization: Callable[[], Any],
) -> Step:
  """One step of gradient descent on a global batch, in cross-replica context.

  A step is two replica calls. The first computes the gradients and adds up
  gradients, weights and metrics in one all-reduce; then, outside the replicas
  where a condition is allowed to hold variables, the update is applied if
  everything is finite.
  """
  strategy = tf.distribute.get_strategy()

  def gradients(rows: Any) -> tuple[Any, ...]:
    with tf.GradientTape() as tape:
      result = loss(rows, training=True)
      sums = losses.add_up(
        result, strategies.batch_size(rows), regularization()
      )
    return _mean_gradients(update, tape, sums, trained)

  def first(value: Any) -> Any:
    return strategy.experimental_local_results(value)[0]

  packed, weight, sums = strategies.run_on_rows(gradients, batch)
  weight, sums = tf.nest.map_structure(first, (weight, sums))
  norms = [
    tf.cast(tf.nn.l2_loss(first(gradient)), tf.float32) for gradient in packed
  ]
  norm = tf.sqrt(2.0 * tf.add_n(norms))
  mean_loss = sums['loss'] / weight
  finite = tf.math.is_finite(mean_loss + norm)

  def apply() -> tf.Tensor:
    with _already_reduced(update.optimizer):
      strategy.run(lambda g: update.apply(g, trained), args=(packed,))
    return tf.constant(True)

  tf.cond(finite, apply, lambda: tf.constant(False))
  means = {name: (value, weight) for name, value in sums.items()}
  means['gradient_norm'] = (norm, tf.ones([]))
  return Step(finite, mean_loss, norm, means)


def _mean_gradients(
  update: Update, tape: tf.GradientTape, sums: losses.Sums, trained: Any
) -> tuple[list[tf.Tensor], tf.Tensor, dict[str, tf.Tensor]]:
  """Gradients of the mean loss of the global batch, weight and metric sums."""
  context = tf.distribute.get_replica_context()
  sources = [buckets.raw(variable) for variable in trained]
  names = list(sums.metrics)
  if context.num_replicas_in_sync == 1:
    # The division rides in the seed of the backward pass and costs nothing.
    scale = 1.0 / sums.weight
    gradients = tape.gradient(sums.objective, sources, output_gradients=scale)
    packed = update.pack(gradients, trained)
    return packed, sums.weight, dict(sums.metrics)
  packed = update.pack(tape.gradient(sums.objective, sources), trained)
  vector = tf.stack([sums.weight, *sums.metrics.values()])
  *packed, vector = context.all_reduce(
    tf.distribute.ReduceOp.SUM, [*packed, vector]
  )
  weight, *reduced = tf.unstack(vector)
  packed = [gradient / tf.cast(weight, gradient.dtype) for gradient in packed]
  return packed, weight, dict(zip(names, reduced, strict=True))


@contextlib.contextmanager
def _already_reduced(optimizer: Any) -> Iterator[None]:
  """Keeps a Keras optimizer from adding up over replicas a second time."""
  if not hasattr(optimizer, '_all_reduce_sum_gradients'):
    raise errors.TaskError(
      f'{type(optimizer).__name__} of this Keras version has no '
      '_all_reduce_sum_gradients; install a Keras that setup.py allows'
    )
  optimizer._all_reduce_sum_gradients = list
  try:
    yield
  finally:
    del optimizer._all_reduce_sum_gradients

"""Gradient computation: micro-batches, one all-reduce, one division."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain.distribute import all_reduce as all_reduce_lib
from tftrain.distribute import replica_batch
from tftrain.interop import mixed_precision
from tftrain.interop import variables as variables_lib
from tftrain.step import clipping
from tftrain.step import fused_variables
from tftrain.step import loss as loss_lib
from tftrain.step import step_summary

Scalars = Mapping[str, tuple[tf.Tensor, tf.Tensor]]

_LATER = 'for the micro-batches after the first'

# Packed gradients, sum of weights, sums of metrics.
_Share = tuple[list[tf.Tensor], tf.Tensor, dict[str, tf.Tensor]]


class Gradients(NamedTuple):
  """The gradients of the mean loss of a global batch.

  Attributes:
    variables: The variables on which the loss depends.
    values: One dense tensor per variable, the same on every replica.
    loss: The mean loss.
    norm: Global norm of all gradients.
    sums: Metric name -> (weighted sum, sum of weights).
    packed: The same gradients in application order, on each replica.
    packing: The Packing that made `packed`.
    optimizer: The optimizer that will apply the gradients.
  """

  variables: Sequence[Any]
  values: Sequence[tf.Tensor]
  loss: tf.Tensor
  norm: tf.Tensor
  sums: Scalars
  packed: Sequence[Any]
  packing: fused_variables.Packing
  optimizer: Any


class GradientOptions(NamedTuple):
  """The options of a gradient computation.

  Attributes:
    packing: The variables, and the order of their gradients.
    accumulate: Micro-batches per step.
    scale: The factor of the loss; None for no loss scale.
    jit: Whether XLA compiles the forward and backward pass.
  """

  packing: fused_variables.Packing
  accumulate: int = 1
  scale: tf.Tensor | None = None
  jit: bool = False


def compute(
  loss: Callable[..., Any],
  batch: Any,
  optimizer: Any,
  regularization: Callable[[], Any],
  way: GradientOptions,
) -> Gradients:
  """Computes the gradients of the mean of `loss` over a global batch.

  Runs in cross-replica context. Each replica adds up the gradients of its
  rows. One all-reduce sums gradients, weights and metrics over the replicas,
  and one division by the sum of weights follows.

  Args:
    loss: `loss(rows, training)` that returns a `Loss`.
    batch: The global batch.
    optimizer: The optimizer that will apply the gradients.
    regularization: Returns the sum of the regularizers; called after the loss.
    way: The options of the computation.
  """
  backward = _Backward(loss, regularization, way)
  packed, weight, metrics = replica_batch.run_on_rows(backward.run, batch)
  weight, metrics = replica_batch.on_first_replica((weight, metrics))
  here = replica_batch.on_first_replica(packed)
  norm = clipping.global_norm(here) if here else tf.zeros([])
  sums = {name: (value, weight) for name, value in metrics.items()}
  sums['gradient_norm'] = (norm, tf.ones([]))
  return Gradients(
    variables=way.packing.reached,
    values=way.packing.unpack(here),
    loss=metrics['loss'] / weight,
    norm=norm,
    sums=sums,
    packed=packed,
    packing=way.packing,
    optimizer=optimizer,
  )


class _Backward:
  """The work of one replica: its rows to the gradients of the global batch."""

  def __init__(
    self,
    loss: Callable[..., Any],
    regularization: Callable[[], Any],
    way: GradientOptions,
  ):
    self._loss = loss
    self._sources = [variables_lib.raw(v) for v in way.packing.variables]
    self._regularization = regularization
    self._way = way
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    self._alone = replicas == 1
    # If the weight is known before the backward pass, the division is part of
    # the output gradient and costs nothing.
    self._divides = self._alone and way.accumulate == 1 and way.scale is None

  def run(self, rows: Any) -> _Share:
    """Returns mean gradients, weight and metric sums of the global batch."""
    add_up: Callable[[Any], _Share] = self._add_up
    if self._way.jit:
      add_up = in_xla(add_up)
    share = add_up(rows)
    if self._divides:
      return share
    packed, weight, metrics = share if self._alone else _all_reduce(*share)
    scale = 1.0 if self._way.scale is None else self._way.scale
    divisor = weight * scale
    return [g / tf.cast(divisor, g.dtype) for g in packed], weight, metrics

  def _add_up(self, rows: Any) -> _Share:
    """Returns the sums over this replica's rows, micro-batch by micro-batch."""
    if self._way.accumulate == 1:
      return self._one_pass(rows)
    if self._alone and not self._way.jit:
      return self._add_up_in_a_loop(rows)
    # Unrolled: on several replicas a pass may hold a collective, which a loop
    # must not; under XLA, slices in a loop have no fixed size.
    parts = self._way.accumulate
    passes = [self._one_pass(_slice(rows, 0, parts))]
    with step_summary.silent(_LATER):
      passes += [
        self._one_pass(_slice(rows, index, parts)) for index in range(1, parts)
      ]
    added: _Share = tf.nest.map_structure(lambda *p: tf.add_n(p), *passes)
    return added

  def _add_up_in_a_loop(self, rows: Any) -> _Share:
    parts = tf.minimum(self._way.accumulate, replica_batch.batch_size(rows))
    if replica_batch.divides(rows, self._way.accumulate):
      parts = self._way.accumulate
    first = self._one_pass(_slice(rows, 0, parts))

    def add(index: tf.Tensor, *so_far: tf.Tensor) -> Any:
      with step_summary.silent(_LATER):
        share = self._one_pass(_slice(rows, index, parts))
      added = tf.nest.flatten(share)
      return index + 1, *(a + b for a, b in zip(so_far, added, strict=True))

    _, *sums = tf.while_loop(
      lambda index, *_: index < parts,
      add,
      (tf.constant(1), *tf.nest.flatten(first)),
    )
    total: _Share = tf.nest.pack_sequence_as(first, sums)
    return total

  def _one_pass(self, rows: Any) -> _Share:
    """Runs one forward and backward pass."""
    count = replica_batch.batch_size(rows)
    with tf.GradientTape() as tape:
      result = self._loss(rows, training=True)
      sums = loss_lib.add_up(result, count, self._regularization())
    seed, factor = None, None
    if self._divides:
      seed = 1.0 / sums.weight
    elif self._way.scale is not None:
      # float16: differentiates the mean, which overflows later than the sum.
      factor = tf.cast(tf.maximum(count, 1), tf.float32)
      seed = self._way.scale / factor
    with step_summary.silent():  # rematerialized layers wrote theirs before
      found = tape.gradient(
        sums.objective, self._sources, output_gradients=seed
      )
    dense = [
      None if g is None else mixed_precision.in_full(tf.convert_to_tensor(g))
      for g in found
    ]
    packed = self._way.packing.pack(dense)
    if factor is not None:
      packed = [
        gradient * tf.cast(factor, gradient.dtype) for gradient in packed
      ]
    return packed, sums.weight, dict(sums.metrics)


def in_xla(function: Callable[..., Any]) -> Any:
  """Compiles a function with XLA, which does not support tf.summary."""
  silent = step_summary.silent('where XLA compiles the step (Update.jit)')
  return tf.function(silent(function), jit_compile=True, autograph=False)


def _all_reduce(
  packed: list[tf.Tensor], weight: tf.Tensor, metrics: dict[str, tf.Tensor]
) -> _Share:
  """Sums over the replicas in one collective, or one for each `bucket_mb`."""
  vector = tf.stack([weight, *metrics.values()])
  *packed, vector = tf.distribute.get_replica_context().all_reduce(
    tf.distribute.ReduceOp.SUM,
    [*packed, vector],
    options=all_reduce_lib.of_gradients(),
  )
  weight, *reduced = tf.unstack(vector)
  return packed, weight, dict(zip(metrics, reduced, strict=True))


def _slice(rows: Any, index: Any, parts: Any) -> Any:
  """Returns micro-batch `index` of `parts`: rows in order, evenly split."""
  if isinstance(parts, int) and replica_batch.divides(rows, parts):
    return replica_batch.part(rows, parts, index)
  count = replica_batch.batch_size(rows)
  begin, end = count * index // parts, count * (index + 1) // parts
  return tf.nest.map_structure(lambda leaf: leaf[begin:end], rows)

"""Gradient computation: micro-batches, one all-reduce, one division."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import all_reduce as all_reduce_lib
from tftrain.distribute import global_rows
from tftrain.distribute import replica_batch
from tftrain.interop import layer_losses
from tftrain.interop import mixed_precision
from tftrain.interop import variables as variables_lib
from tftrain.step import clipping
from tftrain.step import fused_variables
from tftrain.step import loss as loss_lib
from tftrain.step import step_summary

Scalars = Mapping[str, tuple[tf.Tensor, tf.Tensor]]

_LATER = 'for the micro-batches after the first'

# The gradients of each Part, or of each term for each Part; all sums, flat.
_Share = tuple[list[list[tf.Tensor]], list[tf.Tensor]]


class Gradients(NamedTuple):
  """The gradients of the mean loss of a global batch.

  Attributes:
    variables: The variables on which the loss depends.
    values: One dense tensor per variable, the same on every replica. `apply`
      honours other values: `gradients._replace(values=...)`.
    loss: The mean loss.
    norm: Global norm of all gradients.
    sums: Metric name -> (weighted sum, sum of weights).
    packed: The same gradients in application order, on each replica.
    packing: The Packing that made `packed`.
    optimizer: The optimizer that will apply the gradients.
    computed: The `values` that belong to `packed`.
  """

  variables: Sequence[Any]
  values: Sequence[tf.Tensor]
  loss: tf.Tensor
  norm: tf.Tensor
  sums: Scalars
  packed: Sequence[Any]
  packing: fused_variables.Packing
  optimizer: Any
  computed: Sequence[tf.Tensor]

  @property
  def is_finite(self) -> tf.Tensor:
    """Whether the loss and all gradients are finite; a bool scalar."""
    finite: tf.Tensor = tf.math.is_finite(self.loss + self.norm)
    return finite

  def repacked(self) -> 'Gradients':
    """Returns these gradients, with `packed` and `norm` of other `values`."""
    if self.values is self.computed:
      return self
    values = tuple(tf.convert_to_tensor(value) for value in self.values)
    packed = self.packing.repack(values)
    norm = clipping.global_norm(packed) if packed else tf.zeros([])
    sums = {**self.sums, 'gradient_norm': (norm, tf.ones([]))}
    return self._replace(
      values=values, computed=values, packed=packed, norm=norm, sums=sums
    )


class Pair(NamedTuple):
  """An optimizer and the variables that it trains.

  Attributes:
    optimizer: The optimizer.
    variables: The variables to differentiate with respect to.
    key: The name of its loss, if a pass has several.
  """

  optimizer: Any
  variables: Sequence[Any]
  key: str = loss_lib.ONLY


class Part(NamedTuple):
  """What one optimizer gets of a forward and backward pass.

  Attributes:
    optimizer: The optimizer that will apply the gradients.
    packing: Its variables, and the order of their gradients.
    key: The name of its loss, if the pass has several.
  """

  optimizer: Any
  packing: fused_variables.Packing
  key: str = loss_lib.ONLY


class Pass(NamedTuple):
  """A forward and backward pass.

  Attributes:
    loss: `loss(rows, training)` that returns a `Loss`, or name -> `Loss`.
    parts: The optimizers, their variables and losses.
    accumulate: Micro-batches per step.
    scale: The factor of the loss; None for no loss scale.
    jit: Whether XLA compiles the pass.
    in_xla: Whether XLA compiles what the pass is a part of.
  """

  loss: Callable[..., Any]
  parts: Sequence[Part]
  accumulate: int = 1
  scale: tf.Tensor | None = None
  jit: bool = False
  in_xla: bool = False


def compute(way: Pass, batch: Any) -> list[Gradients]:
  """Computes the gradients of the mean loss of a global batch.

  Runs in cross-replica context. Each replica adds up the gradients of its
  rows. One all-reduce sums gradients, weights and metrics over the replicas,
  and one division by the sum of weights follows.

  Args:
    way: The pass.
    batch: The global batch.

  Returns:
    The Gradients of each Part.
  """
  backward = _Backward(way)
  with replica_batch.eager_is_fine():
    packed, flat = tf.distribute.get_strategy().run(backward.run, args=(batch,))
  sums = backward.unflatten(replica_batch.on_first_replica(flat))
  return [
    _of_part(part, own, sums[part.key])
    for part, own in zip(way.parts, packed, strict=True)
  ]


def _of_part(
  part: Part, packed: Sequence[Any], sums: loss_lib.Sums
) -> Gradients:
  here = replica_batch.on_first_replica(packed)
  norm = clipping.global_norm(here) if here else tf.zeros([])
  values = tuple(part.packing.unpack(here))
  return Gradients(
    variables=part.packing.reached,
    values=values,
    loss=sums.total,
    norm=norm,
    sums={**sums.reported, 'gradient_norm': (norm, tf.ones([]))},
    packed=packed,
    packing=part.packing,
    optimizer=part.optimizer,
    computed=values,
  )


class _Backward:
  """The work of one replica: its rows to the gradients of the global batch.

  A Loss of one term is differentiated as a sum, and divided once after the
  all-reduce. Of several terms each has its own denominator, which is needed
  before the backward pass: it is all-reduced between forward and backward.
  Where that cannot be, each term has its own gradients.
  """

  def __init__(self, way: Pass):
    self._loss = way.loss
    self._parts = way.parts
    self._way = way
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    self._alone = replicas == 1
    # Read here: replicas are traced in other threads.
    self._share = replica_batch.current_share()
    self._full_rows = replica_batch.full_rows()
    self._passes: Any = replicas * way.accumulate
    # Denominators come too late under accumulation, and an XLA program of one
    # replica cannot all-reduce them.
    self._each_term_alone = way.accumulate > 1 or (way.jit and not self._alone)
    self._structure: Any = None

  def run(self, batch: Any) -> tuple[list[list[tf.Tensor]], list[tf.Tensor]]:
    """Returns the mean gradients of each Part, and the global sums, flat."""
    # Nothing may run before the batch has arrived: the end of the data does not
    # even advance the seed of a dropout layer.
    with tf.control_dependencies(tf.nest.flatten(batch)):
      rows = replica_batch.own_rows(batch, self._share)
      if self._way.jit:
        groups, flat = self._in_xla(rows)
      elif self._way.accumulate > 1:
        groups, flat = self._add_up(rows)
      else:
        groups, flat = self._one_pass(rows)
      return self._joined(groups, flat)

  def _in_xla(self, rows: Any) -> _Share:
    try:
      share: _Share = in_xla(self._add_up)(rows)
      return share
    except RuntimeError as error:
      if self._alone or 'merge_call' not in str(error):
        raise
      raise errors.TaskError(
        'the loss adds up over the replicas (gather, all_reduce), which '
        "Update.jit = 'step' cannot hold on several replicas; set jit='off'"
      ) from error

  def _joined(
    self, groups: list[list[tf.Tensor]], flat: list[tf.Tensor]
  ) -> tuple[list[list[tf.Tensor]], list[tf.Tensor]]:
    """Adds up over the replicas, and divides."""
    if not self._alone:
      groups, flat = _all_reduce(groups, flat)
    sums = self.unflatten(flat)
    means = []
    for part in self._parts:
      terms = self._terms(part.key)
      own, groups = groups[:terms], groups[terms:]
      means.append(self._mean(own, sums[part.key]))
    return means, flat

  def unflatten(self, flat: Sequence[tf.Tensor]) -> dict[str, loss_lib.Sums]:
    sums: dict[str, loss_lib.Sums]
    sums = tf.nest.pack_sequence_as(self._structure, flat)
    return sums

  def _mean(
    self, groups: Sequence[list[tf.Tensor]], sums: loss_lib.Sums
  ) -> list[tf.Tensor]:
    """Divides the gradients of one Part by what was not divided before."""
    scale = 1.0 if self._way.scale is None else self._way.scale
    if self._divides_before():
      if self._way.scale is None:
        return groups[0]
      return [g / tf.cast(scale, g.dtype) for g in groups[0]]
    means = [
      [
        tf.math.divide_no_nan(g, tf.cast(divisor * scale, g.dtype))
        for g in group
      ]
      for group, divisor in zip(groups, sums.denominators, strict=True)
    ]
    return [tf.add_n(parts) for parts in zip(*means, strict=True)]

  def _terms(self, key: str) -> int:
    """Returns the number of gradients that a pass makes for one Part."""
    if self._divides_before():
      return 1
    return len(self._structure[key].denominators)

  def _divides_before(self) -> bool:
    """Returns whether the denominators are known before the backward pass."""
    if self._each_term_alone:
      return False
    several = any(len(own.denominators) > 1 for own in self._structure.values())
    return several or (self._alone and self._way.scale is None)

  def _add_up(self, rows: Any) -> _Share:
    """Returns the sums over this replica's rows, micro-batch by micro-batch."""
    if self._way.accumulate == 1:
      return self._one_pass(rows)
    if self._alone and not (self._way.jit or self._way.in_xla):
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
    self._passes = parts
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
    again = self._each_term_alone or len(self._parts) > 1
    with (
      global_rows.in_step(self._way.accumulate, self._full_rows),
      tf.GradientTape(persistent=again) as tape,
    ):
      with layer_losses.collected() as collected:
        result = self._loss(rows, training=True)
      sums = loss_lib.add_up_all(
        result, count, collected.penalties(), self._passes
      )
    self._structure = tf.nest.map_structure(lambda _: None, sums)
    self._check_keys(sums)
    factor = None
    if self._way.scale is not None and not self._divides_before():
      # float16: differentiates the mean, which overflows later than the sum.
      factor = tf.cast(tf.maximum(count, 1), tf.float32)
    packed: dict[int, list[list[tf.Tensor]]] = {}
    for key, own in sums.items():
      parts = [part for part in self._parts if part.key == key]
      with step_summary.silent():  # rematerialized layers wrote theirs before
        found = _differentiated(tape, self._targets(own, factor), parts)
      for part, terms in zip(parts, found, strict=True):
        packed[id(part)] = [
          self._packed(part.packing, dense, factor) for dense in terms
        ]
    del tape
    groups = [group for part in self._parts for group in packed[id(part)]]
    return groups, tf.nest.flatten(sums)

  def _check_keys(self, sums: Mapping[str, Any]) -> None:
    """Raises TaskError if pairs and losses do not have the same names."""
    names = {part.key for part in self._parts}
    if names != set(sums):
      raise errors.TaskError(
        f'the loss returned {_shown(sums)}, but minimize() has pairs for '
        f'{_shown(names)}; give both the same names'
      )

  def _targets(
    self, sums: loss_lib.Sums, factor: tf.Tensor | None
  ) -> list[tuple[list[tf.Tensor], list[tf.Tensor] | None]]:
    """Returns (numerators, output gradients) of each backward pass."""
    if not self._divides_before():
      seed = None if factor is None else [self._way.scale / factor]
      return [([numerator], seed) for numerator in sums.numerators]
    divisors = list(sums.denominators)
    if not self._alone:
      divisors = tf.unstack(
        tf.distribute.get_replica_context().all_reduce(
          tf.distribute.ReduceOp.SUM, tf.stack(divisors)
        )
      )
    scale = 1.0 if self._way.scale is None else self._way.scale
    seeds = [tf.math.divide_no_nan(scale, divisor) for divisor in divisors]
    return [(list(sums.numerators), seeds)]

  def _packed(
    self,
    packing: fused_variables.Packing,
    dense: Sequence[tf.Tensor | None],
    factor: tf.Tensor | None,
  ) -> list[tf.Tensor]:
    packed = packing.pack(dense)
    if factor is not None:
      packed = [g * tf.cast(factor, g.dtype) for g in packed]
    return packed


def _differentiated(
  tape: tf.GradientTape,
  targets: Sequence[tuple[list[tf.Tensor], list[tf.Tensor] | None]],
  parts: Sequence[Part],
) -> list[list[list[tf.Tensor | None]]]:
  """Returns for each Part, for each target, its gradients."""
  variables = {
    id(v): v for part in parts for v in part.packing.variables
  }.values()
  sources = [variables_lib.raw(v) for v in variables]
  dense = _filled([
    tape.gradient(numerators, sources, output_gradients=seeds)
    for numerators, seeds in targets
  ])  # fmt: skip
  places = {id(v): place for place, v in enumerate(variables)}
  return [
    [
      [gradients[places[id(v)]] for v in part.packing.variables]
      for gradients in dense
    ]
    for part in parts
  ]


def _shown(names: Iterable[str]) -> str:
  shown = errors.listing(repr(name) for name in sorted(names) if name)
  return shown or 'one Loss'


def _filled(found: Sequence[Sequence[Any]]) -> list[list[tf.Tensor | None]]:
  """Returns dense gradients; all terms get one where a single term has it."""
  dense = [
    [
      None if g is None else mixed_precision.in_full(tf.convert_to_tensor(g))
      for g in gradients
    ]
    for gradients in found
  ]
  for place, column in enumerate(zip(*dense, strict=True)):
    some = next((g for g in column if g is not None), None)
    if some is not None:
      for gradients in dense:
        if gradients[place] is None:
          gradients[place] = tf.zeros_like(some)
  return dense


def in_xla(function: Callable[..., Any]) -> Any:
  """Compiles a function with XLA, which does not support tf.summary."""
  silent = step_summary.silent('where XLA compiles the step (Update.jit)')
  return tf.function(silent(function), jit_compile=True, autograph=False)


def _all_reduce(groups: list[list[tf.Tensor]], flat: list[tf.Tensor]) -> _Share:
  """Sums over the replicas in one collective, or one for each `bucket_mb`."""
  *packed, vector = tf.distribute.get_replica_context().all_reduce(
    tf.distribute.ReduceOp.SUM,
    [*tf.nest.flatten(groups), tf.stack(flat)],
    options=all_reduce_lib.of_gradients(),
  )
  return tf.nest.pack_sequence_as(groups, packed), tf.unstack(vector)


def _slice(rows: Any, index: Any, parts: Any) -> Any:
  """Returns micro-batch `index` of `parts`: rows in order, evenly split."""
  if isinstance(parts, int) and replica_batch.divides(rows, parts):
    return replica_batch.part(rows, parts, index)
  count = tf.nest.flatten(rows)[0].shape[0]  # slices of a static size, if known
  if count is None:
    count = replica_batch.batch_size(rows)
  begin, end = count * index // parts, count * (index + 1) // parts
  return tf.nest.map_structure(lambda leaf: leaf[begin:end], rows)

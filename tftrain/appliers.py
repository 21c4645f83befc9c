"""Gradient to weight: clip, check, apply, average."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from typing import Any

import tensorflow as tf

from tftrain import averages
from tftrain import buckets
from tftrain import clipping
from tftrain import errors
from tftrain import gradients as gradients_lib
from tftrain import groups
from tftrain import optimizers
from tftrain import scales
from tftrain import updates
from tftrain import variables as variables_lib


class Applier:
  """One optimizer and the variables it trains.

  Args:
    optimizer: A Keras optimizer, not built yet.
    trained: Name -> variable, those that a gradient reaches.
    options: How they are updated.
    bucketed: Whether small variables may be updated as one flat variable.
    loss_scale: What `options.loss_scale` comes to.
  """

  def __init__(
    self,
    optimizer: Any,
    trained: Mapping[str, Any],
    options: updates.Update,
    *,
    bucketed: bool,
    loss_scale: str | float | None = None,
  ):
    optimizers.check(optimizer)
    self.optimizer = optimizer
    self.options = options
    self.trained = dict(trained)
    self._names = {id(variable): name for name, variable in trained.items()}
    self._groups = {
      id(v): groups.group_of(options, name) for name, v in trained.items()
    }
    together = bucketed and options.clip_adaptive is None
    self._buckets = self._make_buckets() if together else {}
    inside = {id(v) for b in self._buckets.values() for v in b.variables}
    self._alone = [v for v in trained.values() if id(v) not in inside]
    self._targets: list[tuple[Any, groups.Group]] = [
      *((bucket.flat, group) for group, bucket in self._buckets.items()),
      *((v, self._groups[id(v)]) for v in self._alone),
    ]
    targets = [target for target, _ in self._targets]
    if not optimizer.built:
      optimizer.build(targets)
    self._decays_by_group = any(
      group.factor != 1.0 or not group.decays for group in self._groups.values()
    )
    self._rate = getattr(optimizer, '_learning_rate', None)
    self.configured_rate = float(buckets.value(optimizer.learning_rate))
    self.scale = None if loss_scale is None else scales.LossScale(loss_scale)
    self.average: averages.Average | None = None
    if options.ema is not None:
      self.average = averages.Average(options.ema, targets)
    # What the last measured step found; see `updates.Step` and `_measure`.
    self._zero = tf.Variable(tf.zeros([len(trained)], tf.bool), trainable=False)
    self._stale = False
    self._busy = False

  def _make_buckets(self) -> dict[groups.Group, buckets.Bucket]:
    small: dict[groups.Group, list[Any]] = {}
    for variable in self.trained.values():
      if buckets.is_small(self.optimizer, variable):
        small.setdefault(self._groups[id(variable)], []).append(variable)
    return {
      group: buckets.Bucket(members)
      for group, members in small.items()
      if len(members) > 1
    }

  # Flat copies and the variables themselves, which are the truth.

  def check_unchanged(self) -> None:
    """Raises TaskError if the learning rate is another object than before."""
    if getattr(self.optimizer, '_learning_rate', None) is not self._rate:
      raise errors.TaskError(
        'the learning rate became a schedule after the Trainer was made; make '
        'the optimizer with it, or assign a number'
      )

  def refresh(self) -> None:
    """Takes over weights that were assigned since the last block of steps."""
    for bucket in self._buckets.values():
      bucket.refresh()
    if self.average:
      new = buckets.raw(self.optimizer.iterations).read_value() < 1
      tf.cond(new, self._start_average, lambda: tf.constant(False))

  def _start_average(self) -> tf.Tensor:
    assert self.average is not None
    self.average.start()
    return tf.constant(True)

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """Keeps flat copies right while a step is traced that assigns weights."""

    def seen() -> None:
      self._stale = self._stale or not self._busy

    self._stale = False
    members = [v for b in self._buckets.values() for v in b.variables]
    with buckets.assignments_seen(members, seen):
      yield
      self._refresh_if_stale()

  @contextlib.contextmanager
  def _own_assignments(self) -> Iterator[None]:
    self._busy = True
    try:
      yield
    finally:
      self._busy = False

  def _refresh_if_stale(self) -> None:
    if self._stale:
      for bucket in self._buckets.values():
        bucket.refresh()

  def packing(self, variables: Sequence[Any]) -> buckets.Packing:
    """For gradients of those of `variables` that this optimizer trains."""
    chosen = [v for v in variables if id(v) in self._names]
    return buckets.Packing(chosen, list(self._buckets.values()))

  # One update, in cross-replica context.

  def apply(
    self, gradients: gradients_lib.Gradients, measure: updates.Measure
  ) -> updates.Step:
    """Applies gradients if loss and gradients are finite.

    The decision is made outside the replicas, where a condition is allowed to
    hold variables.

    Args:
      gradients: Of this optimizer.
      measure: Whether to look at what is done, which costs two more passes
        over the weights.
    """
    finite = tf.math.is_finite(gradients.loss + gradients.norm)
    skipped = self.scale.adapt(finite) if self.scale else tf.constant(False)

    self._refresh_if_stale()
    with self._own_assignments():
      ratio = tf.switch_case(
        tf.where(finite, tf.where(measure.look, 2, 1), 0),
        [
          lambda: tf.zeros([]),
          lambda: self._update(gradients),
          lambda: self._measured(gradients),
        ],
      )
      # Outside of the switch: each variable that goes into it costs time. Where
      # nothing was updated this writes what is there.
      tf.distribute.get_strategy().run(self._scatter)
    reported = finite & measure.report
    counted = _masked(reported, ratio, tf.ones([]))
    sums = {**gradients.sums, 'update_ratio': counted}
    if self.scale:  # a step that was skipped counts for nothing
      sums = {name: _masked(finite, *pair) for name, pair in sums.items()}
    return updates.Step(finite, skipped, gradients.loss, gradients.norm, sums)

  def _measured(self, gradients: gradients_lib.Gradients) -> tf.Tensor:
    """Updates; the norm of what the weights moved by, over their norm."""
    names = {id(v): index for index, v in enumerate(self.trained.values())}
    strategy = tf.distribute.get_strategy()
    packed = [
      strategy.experimental_local_results(value)[0]
      for value in gradients.packed
    ]
    # Taken apart here, not by `gradients.values`: those would be computed, and
    # carried into the switch, at every step.
    values = gradients.packing.unpack(packed)
    zero = {
      names[id(variable)]: ~tf.reduce_any(value != 0)
      for variable, value in zip(gradients.variables, values, strict=True)
    }
    self._zero.assign(
      tf.stack([zero.get(i, tf.constant(False)) for i in range(len(names))])
    )
    targets = gradients.packing.targets()
    before = [buckets.raw(target).read_value() for target in targets]
    norm = clipping.global_norm(before)
    self._update(gradients)
    moved = [
      buckets.raw(target).read_value() - value
      for target, value in zip(targets, before, strict=True)
    ]
    return tf.math.divide_no_nan(clipping.global_norm(moved), norm)

  def _update(self, gradients: gradients_lib.Gradients) -> tf.Tensor:
    """Clips and applies, on each replica."""
    strategy = tf.distribute.get_strategy()
    targets = gradients.packing.targets()
    groups_by_id = {id(target): group for target, group in self._targets}
    chosen = [(target, groups_by_id[id(target)]) for target in targets]
    rates = [(target, group.factor) for target, group in chosen]

    def apply(packed: Sequence[tf.Tensor]) -> None:
      if clipping.is_asked(self.options):
        weights = [buckets.raw(target).read_value() for target in targets]
        packed = clipping.clip(self.options, packed, weights, gradients.norm)
      self.optimizer.apply(packed, targets)
      if self.average:
        self.average.follow()

    with (
      optimizers.own_rates(self.optimizer, rates),
      optimizers.already_reduced(self.optimizer),
      optimizers.decay_apart(self.optimizer, self._decays_by_group) as decay,
    ):
      if decay is not None:
        self._decay(chosen, decay)
      strategy.run(apply, args=(gradients.packed,))
    return tf.zeros([])

  def _decay(
    self, targets: Sequence[tuple[Any, groups.Group]], decay: float
  ) -> None:
    """Decoupled weight decay, as Keras has it, but by group."""
    strategy = tf.distribute.get_strategy()
    rate = tf.convert_to_tensor(buckets.raw(self.optimizer.learning_rate))
    for target, group in targets:
      if group.decays and self.optimizer._use_weight_decay(target):

        def shrink(variable: Any, factor: float = group.factor) -> None:
          part = variable * tf.cast(decay, variable.dtype)
          part *= tf.cast(rate, variable.dtype)
          variable.assign_sub(part if factor == 1.0 else part * factor)

        strategy.extended.update(buckets.raw(target), shrink, group=False)

  def _scatter(self) -> None:
    for bucket in self._buckets.values():
      bucket.scatter()

  # What is reported.

  def rates(self) -> dict[str, float]:
    """Learning rate by pattern of `Update.rates`; '' is the optimizer's own."""
    rate = float(buckets.value(self.optimizer.learning_rate))
    used = {group.pattern: group.factor for group in self._groups.values()}
    return {'': rate, **{p: rate * f for p, f in used.items() if p}}

  def without_gradient(self) -> list[str]:
    """Variables whose gradient was zero when a step was last measured."""
    zero = self._zero.numpy()
    return [name for name, none in zip(self.trained, zero, strict=True) if none]

  @contextlib.contextmanager
  def averaged(self) -> Iterator[None]:
    """Puts the averages in the place of the weights, for a while."""
    started = buckets.value(self.optimizer.iterations) > 0
    if self.average is None or not started:
      yield
      return
    members = [buckets.raw(v) for v in self.trained.values()]
    before = [tf.identity(v.read_value()) for v in members]
    average = self._averages()
    for name, variable in zip(self.trained, members, strict=True):
      variable.assign(tf.cast(average[name], variable.dtype))
    try:
      yield
    finally:
      for variable, value in zip(members, before, strict=True):
        variable.assign(value)

  # State, under names per variable, so that bucketing may change freely.

  def read_state(self) -> dict[str, tf.Tensor]:
    state = {
      'iterations': buckets.raw(self.optimizer.iterations).read_value(),
      'configured_learning_rate': tf.constant(self.configured_rate),
    }
    rate = getattr(self.optimizer, '_learning_rate', None)
    if isinstance(rate, buckets.VARIABLE):
      state['learning_rate'] = buckets.raw(rate).read_value()
    for slot, index, variable in self._slots():
      value = buckets.raw(variable).read_value()
      if isinstance(index, int):
        for name, part in self._spread(index, value).items():
          state[f'{slot}/{name}'] = part
      else:
        state[f'{slot}/{index}'] = value
    if self.average:
      for name, value in self._averages().items():
        state[f'ema/{name}'] = value
    if self.scale:
      for name, value in self.scale.read_state().items():
        state[f'loss_scale/{name}'] = value
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    buckets.raw(self.optimizer.iterations).assign(state['iterations'])
    rate = getattr(self.optimizer, '_learning_rate', None)
    unchanged = state.get('configured_learning_rate') == self.configured_rate
    if isinstance(rate, buckets.VARIABLE) and unchanged:
      buckets.raw(rate).assign(state['learning_rate'])
    for slot, index, variable in self._slots():
      if isinstance(index, int):
        value = self._collect(index, state, slot)
      else:
        value = state[f'{slot}/{index}']
      buckets.raw(variable).assign(value)
    if self.average:
      for index, variable in enumerate(self.average.variables):
        variable.assign(self._collect(index, state, 'ema'))
    if self.scale:
      self.scale.write_state(
        {name: state[f'loss_scale/{name}'] for name in self.scale.read_state()}
      )

  def _slots(self) -> Iterator[tuple[str, int | str, Any]]:
    """(slot, index of the target or a name, variable) of the state."""
    built_for = [target for target, _ in self._targets]
    labels = {f'({index})': index for index in range(len(built_for))}
    references = zip(labels, built_for, strict=True)
    found = variables_lib.optimizer_slots(self.optimizer, list(references))
    for slot, label, variable in found:
      yield slot, labels.get(label, label), variable

  def _averages(self) -> dict[str, tf.Tensor]:
    assert self.average is not None
    named: dict[str, tf.Tensor] = {}
    for index, variable in enumerate(self.average.variables):
      named.update(self._spread(index, variable.read_value()))
    return named

  def _spread(self, index: int, value: tf.Tensor) -> dict[str, tf.Tensor]:
    """A value of one target as values of the variables it stands for."""
    bucket = self._bucket(index)
    if bucket is None:
      return {self._members(index)[0]: value}
    return dict(zip(self._members(index), bucket.split(value), strict=True))

  def _collect(self, index: int, state: Mapping[str, Any], slot: str) -> Any:
    """The reverse of `_spread`, out of `slot/name` in a state."""
    bucket = self._bucket(index)
    parts = [state[f'{slot}/{name}'] for name in self._members(index)]
    if bucket is None:
      return parts[0]
    return bucket.join([tf.convert_to_tensor(part) for part in parts])

  def _bucket(self, index: int) -> buckets.Bucket | None:
    return dict(enumerate(self._buckets.values())).get(index)

  def _members(self, index: int) -> list[str]:
    """The names of the variables that a target stands for."""
    bucket = self._bucket(index)
    members = (
      bucket.variables if bucket else [self._alone[index - len(self._buckets)]]
    )
    return [self._names[id(variable)] for variable in members]


def _masked(
  keep: tf.Tensor, value: tf.Tensor, weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  return tf.where(keep, value, 0.0), tf.where(keep, weight, 0.0)

"""Applying gradients: clipping, finite check, optimizer update and EMA."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import replica_batch
from tftrain.interop import keras_optimizer
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.step import _ema
from tftrain.step import _loss_scale
from tftrain.step import clipping
from tftrain.step import fused_variables
from tftrain.step import gradients as gradients_lib
from tftrain.step import parameter_groups
from tftrain.step import update_options


class Applier:
  """One optimizer and the variables it trains.

  Args:
    optimizer: A Keras optimizer that is not built yet.
    trained: Name -> variable, for each variable that receives a gradient.
    options: The options of the training step.
    bucketed: Whether small variables may be updated as one flat variable.
    loss_scale: `options.loss_scale` with `auto` resolved: `dynamic`, a number,
      or None for no loss scale.
  """

  def __init__(
    self,
    optimizer: Any,
    trained: Mapping[str, Any],
    options: update_options.Update,
    *,
    bucketed: bool,
    loss_scale: str | float | None = None,
  ):
    self.optimizer = optimizer
    self.options = options
    self.trained = dict(trained)
    self._targets = fused_variables.make_targets(
      optimizer, trained, options, bucketed=bucketed
    )
    self._buckets = [target.bucket for target in self._targets if target.bucket]
    variables = [target.variable for target in self._targets]
    optimizer.build(variables)
    self._decays_by_group = any(
      target.group.factor != 1.0 or not target.group.decays
      for target in self._targets
    )
    self._rate = getattr(optimizer, '_learning_rate', None)
    self.configured_rate = float(variables_lib.value(optimizer.learning_rate))
    self.scale = (
      None if loss_scale is None else _loss_scale.LossScale(loss_scale)
    )
    self.average: _ema.Average | None = None
    if options.ema is not None:
      self.average = _ema.Average(options.ema, variables)
    # Zero-gradient flag of each trained variable, written by `_measured`.
    self._zero = tf.Variable(tf.zeros([len(trained)], tf.bool), trainable=False)
    self._stale = False
    self._busy = False

  # The model's variables are authoritative; the flat variables are copies.

  def check_unchanged(self) -> None:
    """Raises TaskError if the learning rate was replaced after construction."""
    if getattr(self.optimizer, '_learning_rate', None) is not self._rate:
      raise errors.TaskError(
        'the learning rate became a schedule after the Trainer was made; make '
        'the optimizer with it, or assign a number'
      )

  def refresh(self) -> None:
    """Copies the weights into the flat variables.

    Before the first update, also starts the EMA at the weights.
    """
    self._refresh_buckets()
    if self.average:
      new = variables_lib.raw(self.optimizer.iterations).read_value() < 1
      tf.cond(new, self._start_average, lambda: tf.constant(False))

  def _start_average(self) -> tf.Tensor:
    assert self.average is not None
    self.average.start()
    return tf.constant(True)

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """Keeps flat variables current in a traced step that assigns weights."""

    def seen() -> None:
      self._stale = self._stale or not self._busy

    self._stale = False
    members = [v for bucket in self._buckets for v in bucket.variables]
    with fused_variables.assignments_seen(members, seen):
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
      self._refresh_buckets()

  def _refresh_buckets(self) -> None:
    for bucket in self._buckets:
      bucket.refresh()

  def packing(self, variables: Sequence[Any]) -> fused_variables.Packing:
    """Returns the Packing of those `variables` that this optimizer trains."""
    own = {id(variable) for variable in self.trained.values()}
    return fused_variables.Packing(
      [v for v in variables if id(v) in own], self._buckets
    )

  # One update, in cross-replica context.

  def apply_if_finite(
    self,
    gradients: gradients_lib.Gradients,
    measure: update_options.Measure,
    others: tf.Tensor | None = None,
  ) -> update_options.Step:
    """Applies gradients if loss and gradients are finite.

    The condition stands in cross-replica context, where its branches may
    assign variables.

    Args:
      gradients: Gradients computed for this optimizer.
      measure: Whether to measure the update, at the cost of two more passes
        over the weights.
      others: Whether the other losses and gradients of the pass are finite;
        else nothing is applied.
    """
    gradients = gradients.repacked()
    finite = gradients.is_finite
    applied = finite if others is None else finite & others
    skipped = self.scale.adapt(finite) if self.scale else tf.constant(False)

    self._refresh_if_stale()
    with self._own_assignments():
      ratio = tf.switch_case(
        tf.where(applied, tf.where(measure.look, 2, 1), 0),
        [
          lambda: tf.zeros([]),
          lambda: self._update(gradients),
          lambda: self._measured(gradients),
        ],
      )
      # Outside the switch, as each variable captured by it costs time. After a
      # step without an update, this rewrites the current values.
      tf.distribute.get_strategy().run(self._scatter)
    reported = finite & measure.report
    moved = update_options.counted_if(
      reported, {'update_ratio': (ratio, tf.ones([]))}
    )
    sums = {**gradients.sums, **moved}
    if self.scale or self.options.max_skips:  # skipped steps do not count
      sums = update_options.counted_if(finite, sums)
    return update_options.Step(
      finite, skipped, gradients.loss, gradients.norm, sums
    )

  def _measured(self, gradients: gradients_lib.Gradients) -> tf.Tensor:
    """Updates, and returns the norm of the update over the norm of the weights.

    Also records which variables have a gradient of zero.
    """
    names = {id(v): index for index, v in enumerate(self.trained.values())}
    packed = replica_batch.on_first_replica(gradients.packed)
    # Unpacked here: `gradients.values` would be captured by the switch, and so
    # computed at every step.
    values = gradients.packing.unpack(packed)
    zero = {
      names[id(variable)]: ~tf.reduce_any(value != 0)
      for variable, value in zip(gradients.variables, values, strict=True)
    }
    self._zero.assign(
      tf.stack([zero.get(i, tf.constant(False)) for i in range(len(names))])
    )
    targets = gradients.packing.targets()
    before = [variables_lib.raw(target).read_value() for target in targets]
    norm = clipping.global_norm(before)
    self._update(gradients)
    moved = [
      variables_lib.raw(target).read_value() - value
      for target, value in zip(targets, before, strict=True)
    ]
    return tf.math.divide_no_nan(clipping.global_norm(moved), norm)

  def _update(self, gradients: gradients_lib.Gradients) -> tf.Tensor:
    """Clips and applies the gradients on each replica."""
    strategy = tf.distribute.get_strategy()
    targets = gradients.packing.targets()
    groups_by_id = {id(t.variable): t.group for t in self._targets}
    chosen = [(target, groups_by_id[id(target)]) for target in targets]
    rates = [(target, group.factor) for target, group in chosen]

    def on_replica(packed: Sequence[tf.Tensor]) -> None:
      if clipping.is_asked(self.options):
        weights = [variables_lib.raw(target).read_value() for target in targets]
        packed = clipping.clip(self.options, packed, weights, gradients.norm)
      self.optimizer.apply(packed, targets)
      if self.average:
        self.average.follow()

    with (
      keras_optimizer.own_rates(self.optimizer, rates),
      keras_optimizer.already_reduced(self.optimizer),
      keras_optimizer.decay_apart(
        self.optimizer, self._decays_by_group
      ) as decay,
    ):
      if decay is not None:
        self._decay(chosen, decay)
      strategy.run(on_replica, args=(gradients.packed,))
    return tf.zeros([])

  def _decay(
    self, targets: Sequence[tuple[Any, parameter_groups.Group]], decay: float
  ) -> None:
    """Applies the decoupled weight decay of Keras, group by group."""
    strategy = tf.distribute.get_strategy()
    rate = tf.convert_to_tensor(variables_lib.raw(self.optimizer.learning_rate))
    for target, group in targets:
      if group.decays and self.optimizer._use_weight_decay(target):

        def shrink(variable: Any, factor: float = group.factor) -> None:
          part = variable * tf.cast(decay, variable.dtype)
          part *= tf.cast(rate, variable.dtype)
          variable.assign_sub(part if factor == 1.0 else part * factor)

        strategy.extended.update(variables_lib.raw(target), shrink, group=False)

  def _scatter(self) -> None:
    for bucket in self._buckets:
      bucket.scatter()

  def variables(self) -> list[Any]:
    """Returns all variables that an update changes, except the loss scale."""
    targets = [target.variable for target in self._targets]
    weights = [*self.trained.values(), *targets, self.optimizer.iterations]
    slots = [variable for _, _, variable in self._slots()]
    return [*map(variables_lib.raw, weights), *slots]

  # Reporting.

  def rates(self) -> dict[str, float]:
    """Returns pattern in `Update.rates` -> learning rate; '' -> base rate."""
    rate = float(variables_lib.value(self.optimizer.learning_rate))
    used = {t.group.pattern: t.group.factor for t in self._targets}
    return {'': rate, **{p: rate * f for p, f in used.items() if p}}

  def without_gradient(self) -> list[str]:
    """Returns the variables with a zero gradient in the last measured step."""
    zero = self._zero.numpy()
    return [name for name, none in zip(self.trained, zero, strict=True) if none]

  @contextlib.contextmanager
  def averaged(self) -> Iterator[None]:
    """Swaps the EMA in for the weights within this context."""
    started = variables_lib.value(self.optimizer.iterations) > 0
    if self.average is None or not started:
      yield
      return
    members = [variables_lib.raw(v) for v in self.trained.values()]
    before = [tf.identity(v.read_value()) for v in members]
    average = {
      name: part
      for target, variable in self._averages()
      for name, part in target.split(variable.read_value()).items()
    }
    for name, variable in zip(self.trained, members, strict=True):
      variable.assign(tf.cast(average[name], variable.dtype))
    try:
      yield
    finally:
      for variable, value in zip(members, before, strict=True):
        variable.assign(value)

  # State has one name per variable, so a resumed run may bucket otherwise.

  def read_state(self) -> dict[str, tf.Tensor]:
    state = {
      'iterations': variables_lib.raw(self.optimizer.iterations).read_value(),
      'configured_learning_rate': tf.constant(self.configured_rate),
    }
    rate = getattr(self.optimizer, '_learning_rate', None)
    if isinstance(rate, variables_lib.VARIABLE):
      state['learning_rate'] = variables_lib.raw(rate).read_value()
    for slot, target, variable in self._slots():
      value = variable.read_value()
      if isinstance(target, str):
        state[f'{slot}/{target}'] = value
      else:
        parts = target.split(value)
        state.update({f'{slot}/{name}': part for name, part in parts.items()})
    if self.scale:
      for name, value in self.scale.read_state().items():
        state[f'loss_scale/{name}'] = value
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    variables_lib.raw(self.optimizer.iterations).assign(state['iterations'])
    rate = getattr(self.optimizer, '_learning_rate', None)
    unchanged = state.get('configured_learning_rate') == self.configured_rate
    if isinstance(rate, variables_lib.VARIABLE) and unchanged:
      variables_lib.raw(rate).assign(state['learning_rate'])
    for slot, target, variable in self._slots():
      if isinstance(target, str):
        variable.assign(state[f'{slot}/{target}'])
      else:
        found = {name: state[f'{slot}/{name}'] for name in target.names}
        variable.assign(target.join(found))
    if self.scale:
      self.scale.write_state(
        {name: state[f'loss_scale/{name}'] for name in self.scale.read_state()}
      )

  def _slots(self) -> Iterator[tuple[str, fused_variables.Target | str, Any]]:
    """Yields (slot, its Target or a plain name, variable) of the state."""
    labels = {f'({i})': target for i, target in enumerate(self._targets)}
    references = [(label, target.variable) for label, target in labels.items()]
    found = tracking.optimizer_slots(self.optimizer, references)
    for slot, label, variable in found:
      yield slot, labels.get(label, label), variables_lib.raw(variable)
    for target, variable in self._averages():
      yield 'ema', target, variable

  def _averages(self) -> Iterator[tuple[fused_variables.Target, Any]]:
    if self.average:
      yield from zip(self._targets, self.average.variables, strict=True)

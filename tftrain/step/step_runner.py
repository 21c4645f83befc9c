"""StepRunner: computes and applies the gradients of a built Task."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import functools
from typing import Any

import keras
import tensorflow as tf

from tftrain.interop import autograph
from tftrain.interop import layer_losses
from tftrain.interop import patching
from tftrain.interop import rng
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.step import apply_gradients
from tftrain.step import gradients as gradients_lib
from tftrain.step import parameter_groups
from tftrain.step import remat as remat_lib
from tftrain.step import update_options


class StepRunner:
  """The gradients and updates of one Task, for all its optimizers.

  Args:
    owned: The variables, layers, optimizers and metrics of the Task.
    made: `id(optimizer)` -> Applier.
    options: The options of the training step.
    several: Whether a step updates more than once.
  """

  def __init__(
    self,
    owned: tracking.Owned,
    made: Mapping[int, apply_gradients.Applier],
    options: update_options.Update,
    *,
    several: bool = False,
  ):
    self.options = options
    self._owned = owned
    self._appliers = dict(made)
    self._measure = update_options.Measure()
    self._in_xla = False
    self._moving = [
      variables_lib.raw(v)
      for v in owned.saved.values()
      if not v.trainable and tf.as_dtype(v.dtype) != tf.string
    ]
    # A failed update changes nothing, but other updates of its step may have
    # been applied and must be undone.
    undone = made.values() if several and self.may_skip else ()
    self._undone = list(
      {id(v): v for applier in undone for v in applier.variables()}.values()
    )

  def appliers(self) -> dict[str, apply_gradients.Applier]:
    """Returns name of the optimizer -> Applier."""
    return {
      name: self._appliers[id(optimizer)]
      for name, optimizer in self._owned.optimizers.items()
      if id(optimizer) in self._appliers
    }

  @property
  def may_skip(self) -> bool:
    """True if a step that is not finite may be skipped."""
    scaled = any(applier.scale for applier in self._appliers.values())
    return scaled or self.options.max_skips > 0

  def refresh(self) -> None:
    """Refreshes flat variables and EMA; called before each block of steps."""
    for applier in self._appliers.values():
      applier.refresh()

  def scalars(self) -> dict[str, float]:
    """Returns tag -> learning rate of each group, and loss scales."""
    appliers_by_name = self.appliers()
    found = {}
    for name, applier in appliers_by_name.items():
      prefix = '' if len(appliers_by_name) == 1 else f'{name}/'
      for pattern, rate in applier.rates().items():
        tag = f'learning_rate/{pattern}' if pattern else 'learning_rate'
        found[f'{prefix}{tag}'] = rate
      if applier.scale:
        found[f'{prefix}loss_scale'] = float(applier.scale.value())
    return found

  def without_gradient(self) -> list[str]:
    """Returns the variables with a zero gradient in the last measured step."""
    found = [applier.without_gradient() for applier in self._appliers.values()]
    return [name for names in found for name in names]

  # Calls from a Task's train_step.

  def compute(
    self,
    loss: Callable[..., Any],
    batch: Any,
    pairs: Sequence[gradients_lib.Pair],
  ) -> list[gradients_lib.Gradients]:
    """Computes the gradients of one forward pass, for each pair."""
    return gradients_lib.compute(self._pass(loss, pairs), batch)

  def apply_gradients(
    self, gradients: gradients_lib.Gradients
  ) -> update_options.Step:
    applier = self._appliers[id(gradients.optimizer)]
    return applier.apply_if_finite(gradients, self._measure)

  def update(
    self,
    loss: Callable[..., Any],
    batch: Any,
    pairs: Sequence[gradients_lib.Pair],
    when: Any = None,
  ) -> list[update_options.Step]:
    """Computes and applies the gradients; returns the Step of each pair."""
    alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
    whole_in_xla = self.options.jit == 'step' and alone
    if whole_in_xla or when is not None:
      inside = functools.partial(self._update_inside, loss, pairs, whole_in_xla)
      if when is not None:
        return _take_when(when, inside, batch, len(pairs))
      return inside(batch)
    gradients = gradients_lib.compute(self._pass(loss, pairs), batch)
    others = _all_finite(gradients)
    steps = []
    for found in gradients:
      applier = self._appliers[id(found.optimizer)]
      steps.append(applier.apply_if_finite(found, self._measure, others))
    return steps

  def _update_inside(
    self,
    loss: Callable[..., Any],
    pairs: Sequence[gradients_lib.Pair],
    whole_in_xla: bool,
    batch: Any,
  ) -> list[update_options.Step]:
    """Updates inside a branch, or in an XLA program of its own."""

    def take(batch: Any) -> list[update_options.Step]:
      way = self._pass(loss, pairs)
      if whole_in_xla:
        way = way._replace(jit=False)
      return [
        self.apply_gradients(g) for g in gradients_lib.compute(way, batch)
      ]

    if whole_in_xla:
      take = gradients_lib.in_xla(take)
    return take(batch)

  def _pass(
    self, loss: Callable[..., Any], pairs: Sequence[gradients_lib.Pair]
  ) -> gradients_lib.Pass:
    appliers = [self._appliers[id(pair.optimizer)] for pair in pairs]
    # One pass has one loss scale: any is right, the smallest overflows least.
    scales = [applier.scale.value() for applier in appliers if applier.scale]
    return gradients_lib.Pass(
      autograph.converted(loss),
      [
        gradients_lib.Part(
          pair.optimizer, applier.packing(pair.variables), pair.key
        )
        for pair, applier in zip(pairs, appliers, strict=True)
      ],
      accumulate=self.options.accumulate,
      scale=tf.reduce_min(tf.stack(scales)) if scales else None,
      jit=self.options.jit == 'step',
      in_xla=self._in_xla or self.options.jit == 'step',
    )

  # Contexts of a step.

  @contextlib.contextmanager
  def calls(self, *, remat: bool = False) -> Iterator[None]:
    """Patches layers for the tracing of a step, evaluation or export.

    Applies AutoGraph, distinct seeds per replica, synchronized batch
    normalization, frozen layers and, if `remat`, rematerialization. The layers
    are restored afterwards; Keras has no other hook for this.
    """
    chosen = remat_lib.chosen(self._owned, self.options.remat) if remat else {}
    again = {id(layer) for layer in chosen.values()}

    def wrap(layer: Any, call: Any) -> Any:
      if id(layer) in again:
        call = remat_lib.recomputed(layer, call)
      return layer_losses.noted(layer, call)

    layers = list(self._owned.sublayers.values())
    norms = synchronized(self._owned, self.options).values()
    frozen = _frozen(self._owned, self.options)
    with (
      autograph.calls_converted(layers, wrap),
      layer_losses.watched(layers),
      rng.distinct(self._owned.seeds),
      patching.overridden((layer, 'synchronized', True) for layer in norms),
      patching.overridden((layer, '_trainable', False) for layer in frozen),
    ):
      yield

  @contextlib.contextmanager
  def step(
    self, measure: update_options.Measure, *, in_xla: bool = False
  ) -> Iterator[None]:
    """Provides the context in which a training step is traced.

    Args:
      measure: The measurements to take.
      in_xla: Whether XLA compiles the whole step.
    """
    self._measure, self._in_xla = measure, in_xla
    with contextlib.ExitStack() as stack:
      stack.enter_context(self.calls(remat=True))
      for applier in self._appliers.values():
        stack.enter_context(applier.watching())
      yield

  def check_unchanged(self) -> None:
    for applier in self._appliers.values():
      applier.check_unchanged()

  def moving(self) -> Any:
    """Returns the current values of all that a failed step may have changed.

    These are batch statistics and seeds and, if a step has several updates, the
    variables of all Appliers.
    """
    statistics = ()
    if self._moving:
      statistics = tf.distribute.get_strategy().run(
        lambda: tuple(variable.read_value() for variable in self._moving)
      )
    return statistics, [variable.read_value() for variable in self._undone]

  def restore_unless(self, finite: tf.Tensor, before: Any) -> None:
    """Undoes the effects of a step that was not finite.

    Args:
      finite: Whether the step was finite; a bool scalar.
      before: The result of `moving` before the step.
    """
    if not self._moving and not self._undone:
      return
    statistics, updated = before

    def assign(values: Sequence[tf.Tensor]) -> None:
      for variable, value in zip(self._moving, values, strict=True):
        variable.assign(value)

    def put_back() -> tf.Tensor:
      if self._moving:
        tf.distribute.get_strategy().run(assign, args=(statistics,))
      for variable, value in zip(self._undone, updated, strict=True):
        variable.assign(value)
      return tf.constant(True)

    tf.cond(finite, lambda: tf.constant(False), put_back)

  @contextlib.contextmanager
  def averaged(self) -> Iterator[None]:
    """Swaps the EMA, if there is one, in for the weights in this context."""
    with contextlib.ExitStack() as stack:
      for applier in self._appliers.values():
        stack.enter_context(applier.averaged())
      yield


def synchronized(
  owned: tracking.Owned, options: update_options.Update
) -> dict[str, Any]:
  """Returns name -> batch normalization layer synchronized over replicas."""
  several = tf.distribute.get_strategy().num_replicas_in_sync > 1
  if not (several and options.sync_batch_norm):
    return {}
  return {
    name: layer
    for name, layer in owned.sublayers.items()
    if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
  }


def _frozen(owned: tracking.Owned, options: update_options.Update) -> list[Any]:
  """Returns the layers whose variables are all frozen.

  Keras also stops the batch statistics of such a layer.
  """
  frozen = {
    id(variable)
    for name, variable in owned.variables.items()
    if parameter_groups.matches(options.freeze, name)
  }
  return [
    layer
    for layer in owned.sublayers.values()
    if layer.variables and frozen.issuperset(map(id, layer.variables))
  ]


def _all_finite(
  gradients: Sequence[gradients_lib.Gradients],
) -> tf.Tensor | None:
  """Returns whether all gradients of a pass are finite; None for one pair."""
  if len(gradients) == 1:
    return None
  return tf.reduce_all(tf.stack([found.is_finite for found in gradients]))


def _take_when(
  when: Any,
  take: Callable[[Any], list[update_options.Step]],
  batch: Any,
  count: int,
) -> list[update_options.Step]:
  """Takes `count` Steps if `when` holds; else returns Steps without effect."""
  sums: list[Mapping[str, Any]] = [{}] * count

  def taken() -> list[update_options.Step]:
    steps = take(batch)
    sums[:] = [step.sums for step in steps]
    return steps

  def left_out() -> list[update_options.Step]:
    zero = tf.zeros([])
    return [
      update_options.Step(
        finite=tf.constant(True),
        skipped=tf.constant(False),
        loss=zero,
        gradient_norm=zero,
        sums=dict.fromkeys(own, (zero, zero)),
      )
      for own in sums
    ]

  steps: list[update_options.Step]
  steps = tf.cond(tf.convert_to_tensor(when), taken, left_out)
  return steps

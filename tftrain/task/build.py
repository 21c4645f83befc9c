"""Task building: a dry run of the step on a real batch, and its checks."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.distribute import global_rows
from tftrain.distribute import replica_batch
from tftrain.interop import keras_optimizer
from tftrain.interop import layer_losses
from tftrain.interop import patching
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.step import apply_gradients
from tftrain.step import fused_variables
from tftrain.step import gradients as gradients_lib
from tftrain.step import parameter_groups
from tftrain.step import remat as remat_lib
from tftrain.step import step_runner
from tftrain.step import update_options


def prepare(owned: tracking.Owned, options: update_options.Update) -> None:
  """Checks variables and options, once all variables are created.

  Raises:
    ConfigError: If a pattern in `options` matches nothing or freezes
      everything, a layer to rematerialize has state, or `jit` excludes
      `sync_batch_norm`.
    TaskError: If a variable was created outside the strategy's scope.
  """
  strategy = tf.distribute.get_strategy()
  for name, variable in owned.variables.items():
    raw = variables_lib.raw(variable)
    if not strategy.extended.variable_created_in_scope(raw):
      raise errors.TaskError(
        f'variable {name} was created outside the strategy; build the model '
        'inside `with strategy.scope():` (or pass Experiment a function that '
        'builds it)'
      )
  parameter_groups.check_patterns(options, owned.trainable, owned.sublayers)
  remat_lib.check(remat_lib.chosen(owned, options.remat))
  if options.jit == 'block' and strategy.num_replicas_in_sync > 1:
    raise errors.ConfigError(
      "Update.jit = 'block' is for one replica, as XLA cannot hold the "
      "all-reduce; set jit='step' or 'off'"
    )
  if options.jit == 'step' and strategy.num_replicas_in_sync > 1:
    for name in step_runner.synchronized(owned, options):
      raise errors.ConfigError(
        f'Update.jit: XLA cannot hold the all-reduce of {name} on several '
        "replicas; set jit='off', or sync_batch_norm=False"
      )


class Recorder:
  """A StepRunner for the dry run: records the variables that each call trains.

  Args:
    owner: The Task's class name, for error messages.
    options: The options of the training step. The dry run uses the rows of one
      micro-batch and rematerializes layers, to fit into the memory of a step.
    layers: The layers of the Task, including nested ones.
    recomputed: The layers to rematerialize, once they are known.
    strict: Whether a call that trains nothing is an error.
  """

  def __init__(
    self,
    owner: str,
    options: update_options.Update,
    *,
    layers: Sequence[Any] = (),
    recomputed: Sequence[Any] = (),
    strict: bool,
  ):
    self._owner = owner
    self._options = options
    self._layers = layers
    self._recomputed = {id(layer) for layer in recomputed}
    self._strict = strict
    self._calls: list[tuple[Any, fused_variables.Packing]] = []
    self._updates = 0
    self._read: dict[int, Any] = {}

  def compute(
    self,
    loss: Callable[..., Any],
    batch: Any,
    pairs: Sequence[gradients_lib.Pair],
  ) -> list[gradients_lib.Gradients]:
    """Computes gradients and records the variables that receive one."""
    for pair in pairs:
      keras_optimizer.check(pair.optimizer, self._owner)

    def watched(rows: Any, training: bool) -> Any:
      with (
        global_rows.in_step(self._options.accumulate),
        tf.GradientTape() as tape,
      ):
        result = loss(rows, training=training)
      for variable in tape.watched_variables():
        self._read[id(_container(variable))] = _container(variable)
      return result

    parts = [
      gradients_lib.Part(
        pair.optimizer, fused_variables.Packing(pair.variables), pair.key
      )
      for pair in pairs
    ]
    found = gradients_lib.compute(
      gradients_lib.Pass(watched, parts),
      replica_batch.first_part(batch, self._options.accumulate),
    )
    for part in parts:
      if self._strict and not part.packing.reached:
        raise errors.TaskError(_nothing_reached(part.packing.variables))
      self._calls.append((part.optimizer, part.packing))
    return found

  def apply_gradients(
    self, gradients: gradients_lib.Gradients
  ) -> update_options.Step:
    """Counts the update and returns its Step; the weights stay unchanged."""
    self._updates += 1
    zero = tf.zeros([])
    return update_options.Step(
      finite=tf.constant(True),
      skipped=tf.constant(False),
      loss=gradients.loss,
      gradient_norm=gradients.norm,
      sums={**gradients.sums, 'update_ratio': (zero, zero)},
    )

  def update(
    self,
    loss: Callable[..., Any],
    batch: Any,
    pairs: Sequence[gradients_lib.Pair],
    when: Any = None,
  ) -> list[update_options.Step]:
    del when
    return [
      self.apply_gradients(found) for found in self.compute(loss, batch, pairs)
    ]

  @contextlib.contextmanager
  def step(
    self, measure: update_options.Measure, *, in_xla: bool = False
  ) -> Iterator[None]:
    del measure, in_xla

    def wrapped(layer: Any) -> Any:
      call = layer.call
      if id(layer) in self._recomputed:
        call = remat_lib.recomputed(layer, call)
      return layer_losses.noted(layer, call)

    with (
      layer_losses.watched(self._layers),
      patching.overridden(
        (layer, 'call', wrapped(layer)) for layer in self._layers
      ),
    ):
      yield

  def moving(self) -> Any:
    return ()

  def restore_unless(self, finite: tf.Tensor, before: Any) -> None:
    del finite, before

  def make_step_runner(self, owned: tracking.Owned) -> step_runner.StepRunner:
    """Builds the optimizers and returns a StepRunner for the recorded calls."""
    self._check_owned(owned)
    names = {id(variable): name for name, variable in owned.variables.items()}
    reached = self._reached_by_optimizer()
    counts: dict[int, int] = {}
    for _, found in reached.values():
      for variable in found:
        counts[id(variable)] = counts.get(id(variable), 0) + 1
    made = {}
    for optimizer, found in reached.values():
      sets = [
        {id(v) for v in packing.reached}
        for own, packing in self._calls
        if own is optimizer
      ]
      made[id(optimizer)] = apply_gradients.Applier(
        optimizer,
        {names[id(variable)]: variable for variable in found},
        self._options,
        # A bucket needs the gradients of all its members in each call, and one
        # optimizer.
        bucketed=all(one == sets[0] for one in sets)
        and all(counts[id(v)] == 1 for v in found),
        loss_scale=_loss_scale(self._options, owned),
      )
    self._name_untrained(owned)
    _check_decay(self._options, made)
    return step_runner.StepRunner(
      owned,
      made,
      self._options,
      several=self._updates > 1,
    )

  def _reached_by_optimizer(self) -> dict[int, tuple[Any, list[Any]]]:
    reached: dict[int, tuple[Any, list[Any]]] = {}
    for optimizer, packing in self._calls:
      _, found = reached.setdefault(id(optimizer), (optimizer, []))
      known = {id(variable) for variable in found}
      found += [v for v in packing.reached if id(v) not in known]
    return reached

  def _check_owned(self, owned: tracking.Owned) -> None:
    """Raises TaskError if a trained variable or optimizer is not owned.

    Only variables and optimizers among the attributes of the Task are saved.
    """
    known = {id(value) for value in owned.variables.values()}
    owned_optimizers = {id(value) for value in owned.optimizers.values()}
    for optimizer, packing in self._calls:
      lost = [v.name for v in packing.reached if id(v) not in known]
      if id(optimizer) not in owned_optimizers:
        lost.append(type(optimizer).__name__)
      if lost:
        raise errors.TaskError(
          f'{lost[0]} is trained but not found in {self._owner}; make what '
          'holds it an attribute whose name does not start with _'
        )

  def _name_untrained(self, owned: tracking.Owned) -> None:
    """Warns of variables without a gradient, and of those the Task lacks."""
    reached = {id(v) for _, packing in self._calls for v in packing.reached}
    untrained = [
      name
      for name, variable in owned.trainable.items()
      if id(variable) not in reached
      and not parameter_groups.matches(self._options.freeze, name)
    ]
    if untrained:
      logging.warning(
        'No gradient reaches %s; nothing trains them.',
        errors.listing(untrained),
      )
    known = {id(variables_lib.raw(v)) for v in owned.variables.values()}
    hidden = [v.name for key, v in self._read.items() if key not in known]
    if hidden:
      logging.warning(
        '%s reads variables that are hidden from it (%s): they are neither '
        'trained nor saved. Make what holds them an attribute of the Task or '
        'of its model.',
        self._owner,
        errors.listing(hidden),
      )


def _container(variable: Any) -> Any:
  """Returns the distributed variable of which this one is a replica."""
  for holder in (variable, getattr(variable, 'handle', None)):
    container = getattr(holder, '_distributed_container', None)
    if container is not None:
      return container()
  return variable


def _nothing_reached(variables: Sequence[Any]) -> str:
  names = errors.listing(v.name for v in variables)
  cause = (
    f' ({names})'
    if names
    else (': the model has no variable yet; give it a keras.Input')
  )
  return (
    f'no gradient reaches any variable{cause}; compute the loss from the model '
    'inside loss(), with TensorFlow ops'
  )


def _loss_scale(
  options: update_options.Update, owned: tracking.Owned
) -> str | float | None:
  if options.loss_scale != 'auto':
    return options.loss_scale
  layers = owned.sublayers.values()
  half = any(layer.compute_dtype == 'float16' for layer in layers)
  return 'dynamic' if half else None


def _check_decay(
  options: update_options.Update, made: Mapping[int, apply_gradients.Applier]
) -> None:
  decays = [applier.optimizer.weight_decay for applier in made.values()]
  if options.no_decay and not any(decays):
    names = {type(applier.optimizer).__name__ for applier in made.values()}
    raise errors.ConfigError(
      f'Update.no_decay = {options.no_decay!r}, but {errors.listing(names)} '
      'has no weight_decay; give the optimizer one, or leave no_decay out'
    )

"""Task: a model, its loss and its optimizer."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.distribute import replica_batch
from tftrain.interop import autograph
from tftrain.interop import keras_optimizer
from tftrain.interop import layer_losses
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.step import gradients as gradients_lib
from tftrain.step import loss as loss_lib
from tftrain.step import parameter_groups
from tftrain.step import remat as remat_lib
from tftrain.step import step_runner
from tftrain.step import step_summary
from tftrain.step import update_options
from tftrain.task import _train_step
from tftrain.task import build as build_lib


class Task:
  """A model, its loss and its optimizer; the base class of training tasks.

  Subclasses define `loss`, or override `train_step` for more control. Create a
  Task inside `strategy.scope()`, which places its variables. Every model,
  optimizer and Keras metric that is an attribute of the Task is found, trained,
  saved and restored; attributes that start with `_` are ignored.

  >>> class Regression(Task):
  ...   def loss(self, batch, training):
  ...     x, y = batch
  ...     error = self.model(x, training=training)[:, 0] - y  # [batch]
  ...     return Loss(error**2, absolute_error=tf.abs(error))

  Args:
    model: A Keras model or layer, or a `tf.Module` that can be called.
    optimizer: A Keras optimizer that is not built yet.
  """

  def __init__(self, model: Any = None, optimizer: Any = None):
    self.model = model
    self.optimizer = optimizer
    self._options = update_options.Update()
    self._step_runner: step_runner.StepRunner | None = None
    # The StepRunner; a Recorder until the Task is built.
    self._runner: step_runner.StepRunner | build_lib.Recorder = self._recorder()
    self._built: tracking.Owned | None = None
    self._trainable: frozenset[str] = frozenset()
    self._tags: tuple[str, ...] = ()
    self._graph: Any = None
    self._strategy: Any = None
    self._steps: list[update_options.Step] = []

  def loss(self, batch: Any, training: bool) -> loss_lib.Loss:
    """Returns the `Loss` of a batch: one value per example, `[batch]`.

    Args:
      batch: The rows of one replica.
      training: True in a training step, False in an evaluation.
    """
    raise errors.TaskError(
      f'{type(self).__name__} has no loss(batch, training); write one that '
      'returns tftrain.Loss(values), or override train_step'
    )

  def train_step(self, batch: Any) -> update_options.Step:
    """Trains on one global batch; override it for GANs and the like.

    The method runs compiled, in cross-replica context. Call `minimize`, or
    `gradients` and `apply`, as often as needed, and return the `Step` of the
    last call. The metrics of all calls are reported, and the step counts as
    finite only if all calls were.
    """
    return self.minimize(self.loss, batch)

  @autograph.unconverted
  def minimize(
    self,
    loss: Callable[..., Any],
    batch: Any,
    variables: Any = None,
    optimizer: Any = None,
    name: str = '',
    when: Any = None,
    *,
    pairs: Any = None,
  ) -> update_options.Step:
    """Computes the gradients of `loss` and applies them to `variables`.

    With `pairs`, one forward pass serves several optimizers, and, if `loss`
    returns name -> `Loss`, several losses, as a persistent tape does:

    >>> self.minimize(self.losses, batch, pairs={
    ...   'generator': (self.generator_optimizer, self.generator),
    ...   'critic': (self.critic_optimizer, self.critic)})

    All gradients are computed before the first update. What layers add
    (`add_loss`, regularizers) counts in each loss of the pass.

    Args:
      loss: `loss(batch, training)` that returns a `Loss`; called with one
        replica's rows.
      batch: The global batch.
      variables: The variables to train, or a model; None means all variables.
      optimizer: The optimizer to apply; None means `self.optimizer`.
      name: Prefix of the metric names, as in `name/loss`; '' means no prefix.
      when: A bool scalar; if False, nothing is computed and nothing changes.
        None means True. Use it instead of `if`:
        `when=self.critic_optimizer.iterations % 5 == 0`
      pairs: Instead of `variables` and `optimizer`: a list of (optimizer,
        variables) that share the Loss; or, if `loss` returns name -> `Loss`,
        name -> (optimizer, variables).
    """
    chosen = self._pairs(variables, optimizer, pairs)
    steps = self._runner.update(loss, batch, chosen, when)
    prefixes = self._prefixes(chosen, name)
    noted = [
      self._note(step, prefix if pair.key else name, prefix)
      for step, pair, prefix in zip(steps, chosen, prefixes, strict=True)
    ]
    return (
      noted[0] if len(noted) == 1 else _train_step.combined(noted[-1], noted)
    )

  @autograph.unconverted
  def gradients(
    self,
    loss: Callable[..., Any],
    batch: Any,
    variables: Any = None,
    optimizer: Any = None,
    *,
    pairs: Any = None,
  ) -> Any:
    """Computes the mean gradients of a global batch, without an update.

    For steps of several passes, such as sharpness-aware minimization (SAM):
    read `values`, assign variables, compute new gradients, then `apply` those.

    Args:
      loss: `loss(batch, training)`, as in `minimize`.
      batch: The global batch.
      variables: The variables to train, or a model; None means all variables.
      optimizer: The optimizer for `apply`; None means `self.optimizer`.
      pairs: As in `minimize`.

    Returns:
      `Gradients`; with `pairs` one for each, in a list, or by name.
    """
    chosen = self._pairs(variables, optimizer, pairs)
    found = self._runner.compute(loss, batch, chosen)
    if pairs is None:
      return found[0]
    if isinstance(pairs, Mapping):
      return dict(zip(pairs, found, strict=True))
    return found

  @autograph.unconverted
  def apply(
    self, gradients: gradients_lib.Gradients, name: str = ''
  ) -> update_options.Step:
    """Clips, checks and applies gradients: the second half of `minimize`.

    Args:
      gradients: The result of `gradients`.
      name: Prefix of the metric names; '' means no prefix.
    """
    return self._note(self._runner.apply_gradients(gradients), name, name)

  def eval_step(self, batch: Any) -> Mapping[str, tuple[tf.Tensor, tf.Tensor]]:
    """Returns metric -> (weighted sum, sum of weights) over a global batch."""

    replicas = tf.distribute.get_strategy().num_replicas_in_sync

    def add_up(rows: Any) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
      with layer_losses.collected() as collected:
        result = autograph.converted(self.loss)(rows, training=False)
      losses = loss_lib.add_up_all(
        result,
        replica_batch.batch_size(rows),
        collected.penalties(),
        replicas,
      )
      return {
        f'{key}/{name}' if key else name: pair
        for key, sums in losses.items()
        for name, pair in sums.reported.items()
      }

    with self.calls():
      found: dict[str, tuple[tf.Tensor, tf.Tensor]] = (
        replica_batch.sum_over_replicas(add_up, batch)
      )
    return found

  def collect(self, batch: Any) -> Mapping[str, tf.Tensor]:
    """Returns the inputs of `host_metrics`: name -> tensor `[batch, ...]`."""
    return {'outputs': self.serve(self.features(batch))}

  def host_metrics(
    self,
  ) -> Mapping[str, Callable[[Mapping[str, np.ndarray]], float]]:
    """Returns name -> NumPy function of the collected arrays of an evaluation.

    For metrics that are not a mean over examples, such as AUC, F1 and BLEU.
    """
    return {}

  def serve(self, features: Any) -> Any:
    """Computes the output of an exported model; override to add a softmax."""
    return self.model(features, training=False)

  def signatures(self, features: Any) -> Mapping[str, Any]:
    """Returns additional signatures of an export: name -> `Signature`.

    Args:
      features: A real batch of features, as an example input of `serve`.
    """
    del features
    return {}

  def features(self, batch: Any) -> Any:
    """Returns the input of `serve`: the first element of a tuple batch.

    Any other batch is returned whole.
    """
    return batch[0] if isinstance(batch, tuple | list) else batch

  def artifacts(self, batch: Any) -> Mapping[str, Any]:
    """Returns artifacts for TensorBoard, made after each evaluation.

    Runs eagerly, on the first batch of the evaluation's data.

    Returns:
      Name -> images `[images, height, width, channels]`, uint8 or 0 to 1; a
      text in Markdown; a tftrain.summary.Audio, Table, Histogram or PrCurve;
      or a matplotlib Figure.
    """
    del batch
    return {}

  def averaged(self) -> contextlib.AbstractContextManager[None]:
    """Swaps the EMA, if there is one, in for the weights in this context.

    Evaluation and export use this context. Afterwards the weights are restored
    bit for bit.
    """
    engine = self._step_runner
    return engine.averaged() if engine else contextlib.nullcontext()

  @property
  def metrics(self) -> dict[str, Any]:
    """The Keras metrics of the Task and its models, by reported name.

    Metrics with the same name are reported by their paths.
    """
    owned = self._owned().metrics
    names = [metric.name for metric in owned.values()]
    return {
      metric.name if names.count(metric.name) == 1 else path: metric
      for path, metric in owned.items()
    }

  @property
  def optimizers(self) -> dict[str, Any]:
    """The optimizers among the attributes, by name."""
    return dict(self._owned().optimizers)

  # For Trainers, Evaluators and exports.

  def build(
    self, batch: Any, options: update_options.Update | None = None
  ) -> tuple[str, ...]:
    """Creates and checks everything that depends on data.

    Runs the step on one real batch, eagerly and without effect. The dry run
    creates the variables of lazily built layers, shows a wrong shape or label
    with a Python stack, and finds the variables that receive no gradient. Then
    the optimizers are built, and later new variables are rejected. A second
    call only checks that strategy and options are the same.

    Args:
      batch: A global batch.
      options: The options of the training step; None means the defaults.

    Returns:
      The names of the metrics that `train_step` reports.

    Raises:
      TaskError: If a Trainer finds no optimizer, nothing to train, a variable
        created outside the strategy's scope, or an earlier build with another
        strategy or other options.
      ConfigError: If `options` do not fit the Task.
    """
    if self._step_runner:  # built by an Evaluator or another Trainer
      self._check_same(options)
      return self._tags
    is_trained = options is not None
    self._options = options or update_options.Update()
    self._strategy = tf.distribute.get_strategy()
    with self._strategy.scope():
      self._create_variables(batch)
      owned = tracking.owned_by(self)
      build_lib.prepare(owned, self._options)
      self._trainable = frozenset(owned.trainable)
      if not is_trained and not owned.optimizers:
        return self._build_for_evaluation(owned)
      again = remat_lib.chosen(owned, self._options.remat)
      recorder = self._recorder(recomputed=list(again.values()))
      step = self._try_step(batch, recorder)
      self._built = owned
      self._step_runner = recorder.make_step_runner(owned)
      self._runner = self._step_runner
    self._tags = tuple(step.sums)
    return self._tags

  def _build_for_evaluation(self, owned: tracking.Owned) -> tuple[str, ...]:
    """Builds a Task that has no optimizer."""
    self._built = owned
    self._step_runner = step_runner.StepRunner(owned, {}, self._options)
    self._runner = self._step_runner
    return self._tags

  def _check_same(self, options: update_options.Update | None) -> None:
    """Raises TaskError if built for another strategy or with other options."""
    name = type(self).__name__
    if tf.distribute.get_strategy() is not self._strategy:
      raise errors.TaskError(
        f'{name} was built under another strategy; make a new one inside '
        '`with strategy.scope():`'
      )
    if options not in (None, self._options):
      raise errors.TaskError(
        f'{name} was built with other options; give all its Trainers the same '
        'update, and make them before its Evaluators'
      )
    if options is not None and not self._owned().optimizers:
      keras_optimizer.check(None, name)

  @property
  def is_built(self) -> bool:
    return self._step_runner is not None

  @property
  def step_runner(self) -> step_runner.StepRunner:
    assert self._step_runner is not None, 'build comes first'
    return self._step_runner

  def calls(self) -> contextlib.AbstractContextManager[None]:
    """Patches the layers for the tracing of a function, in this context."""
    return (
      self._step_runner.calls()
      if self._step_runner
      else contextlib.nullcontext()
    )

  @contextlib.contextmanager
  def recorded(
    self,
    measure: update_options.Measure | None = None,
    *,
    in_xla: bool = False,
  ) -> Iterator[_train_step.TrainStep]:
    """The context of one call of `train_step`, which joins its updates.

    >>> with task.recorded() as call:
    ...   call.result = autograph.converted(task.train_step)(batch)
    >>> call.step.finite

    Args:
      measure: The measurements to take of the updates; None means no
        measurements.
      in_xla: Whether XLA compiles the whole step.
    """
    call = _train_step.TrainStep()
    self._steps = []
    self._graph = None
    if not tf.executing_eagerly():
      self._graph = tf.compat.v1.get_default_graph()
    before = self._runner.moving()
    with self._runner.step(measure or update_options.Measure(), in_xla=in_xla):
      yield call
    call.step = _train_step.combined(call.result, self._steps)
    self._steps = []
    self._runner.restore_unless(call.step.finite, before)

  def check_unchanged(self) -> None:
    """Raises TaskError if the trainable variables changed since `build`."""
    trainable = frozenset(self._owned().trainable)
    if trainable != self._trainable:
      name = min(trainable ^ self._trainable)
      raise errors.TaskError(
        f'whether {name} is trainable changed after the Trainer was made; '
        'freeze layers before'
      )
    self.step_runner.check_unchanged()

  @contextlib.contextmanager
  def variables_restored(self) -> Iterator[None]:
    """Restores every variable at the end of this context: for dry runs."""
    owned = tracking.owned_by(self)
    everything = [variables_lib.raw(v) for v in owned.saved.values()]
    before = [(v, tf.identity(v.read_value())) for v in everything]

    def create(next_creator: Any, **kwargs: Any) -> Any:
      variable = next_creator(**kwargs)
      before.append((variable, tf.identity(variable.read_value())))
      return variable

    try:
      with step_summary.silent(), tf.variable_creator_scope(create):
        yield
    finally:
      for variable, value in before:
        variable.assign(value)

  @contextlib.contextmanager
  def seeds_restored(self) -> Iterator[None]:
    """Restores seed generators afterwards: an evaluation may draw numbers."""
    states = [generator.state.value for generator in self._owned().seeds]
    before = [state.read_value() for state in states]
    try:
      yield
    finally:
      for state, value in zip(states, before, strict=True):
        state.assign(value)

  def all_variables(self) -> list[tf.Variable]:
    """Returns the tf.Variable of every variable of the models."""
    owned = self._owned().variables
    return [variables_lib.raw(variable) for variable in owned.values()]

  # State: name -> value, the complete state of a Task for a checkpoint.

  def read_state(self) -> dict[str, tf.Tensor]:
    saved = self._owned().saved
    state = {
      name: variables_lib.raw(v).read_value() for name, v in saved.items()
    }
    for name, applier in self.step_runner.appliers().items():
      for key, value in applier.read_state().items():
        state[f'{name}/{key}'] = value
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    for name, variable in self._owned().saved.items():
      variables_lib.raw(variable).assign(state[name], read_value=False)
    for name, applier in self.step_runner.appliers().items():
      prefix = f'{name}/'
      applier.write_state(
        {
          key.removeprefix(prefix): value
          for key, value in state.items()
          if key.startswith(prefix)
        }
      )

  def _owned(self) -> tracking.Owned:
    return self._built or tracking.owned_by(self)

  def _pairs(
    self, variables: Any, optimizer: Any, pairs: Any
  ) -> list[gradients_lib.Pair]:
    """Returns the optimizers, each with the variables that are not frozen."""
    if pairs is None:
      optimizer = self.optimizer if optimizer is None else optimizer
      return [gradients_lib.Pair(optimizer, self._chosen(variables))]
    if variables is not None or optimizer is not None:
      raise errors.TaskError(
        'minimize() got pairs and also variables or an optimizer; give either'
      )
    named = pairs if isinstance(pairs, Mapping) else None
    given = list(pairs.values()) if named is not None else list(pairs)
    wrong = [p for p in given if not isinstance(p, tuple | list) or len(p) != 2]
    if wrong or not given:
      raise errors.TaskError(
        'minimize(pairs=...) takes (optimizer, variables) in a list or by '
        f'name, got {type(wrong[0]).__name__ if wrong else "none"}'
      )
    keys = list(named) if named is not None else [loss_lib.ONLY] * len(given)
    return [
      gradients_lib.Pair(optimizer, self._chosen(variables), key)
      for key, (optimizer, variables) in zip(keys, given, strict=True)
    ]

  def _prefixes(
    self, pairs: Sequence[gradients_lib.Pair], name: str
  ) -> list[str]:
    """Returns the prefix of the metric names of each pair."""
    if len(pairs) == 1 and not pairs[0].key:
      return [name]
    owned = {id(o): key for key, o in self._owned().optimizers.items()}
    own = [
      pair.key or owned.get(id(pair.optimizer), f'optimizer_{index}')
      for index, pair in enumerate(pairs)
    ]
    return [f'{name}/{part}' if name else part for part in own]

  def _chosen(self, variables: Any) -> list[Any]:
    """Returns the variables to train, except frozen ones."""
    owned = self._owned()
    names = {id(variable): name for name, variable in owned.variables.items()}
    given = owned.trainable.values() if variables is None else variables
    given = getattr(given, 'trainable_variables', given)  # given a model
    return [
      variable
      for variable in given
      if not parameter_groups.matches(
        self._options.freeze, names.get(id(variable), '')
      )
    ]

  def _note(
    self, step: update_options.Step, name: str, own_name: str
  ) -> update_options.Step:
    """Notes a Step of this train_step, its metrics under their full names.

    Args:
      step: The Step.
      name: Prefix of the loss and its metrics.
      own_name: Prefix of what belongs to the optimizer alone.
    """
    if not tf.executing_eagerly() and step.finite.graph is not self._graph:
      raise errors.TaskError(
        f'train_step of {type(self).__name__} updates inside an `if` or a '
        'loop; call minimize(..., when=condition) instead'
      )
    named = {}
    for key, value in step.sums.items():
      prefix = own_name if key in _train_step.OF_THE_OPTIMIZER else name
      named[f'{prefix}/{key}' if prefix else key] = value
    self._steps.append(step._replace(sums=named))
    return self._steps[-1]

  def _recorder(
    self, *, recomputed: Sequence[Any] = (), strict: bool = True
  ) -> build_lib.Recorder:
    return build_lib.Recorder(
      type(self).__name__,
      self._options,
      layers=list(tracking.owned_by(self).sublayers.values()),
      recomputed=recomputed,
      strict=strict,
    )

  def _create_variables(self, batch: Any) -> None:
    """Calls every model once, to build lazily built layers."""
    if type(self).loss is not Task.loss:
      with self.variables_restored():
        rows = replica_batch.first_part(batch, self._options.accumulate)
        replica_batch.run_on_rows(self._call_loss, rows)
    if type(self).train_step is not Task.train_step:
      self._try_step(batch, self._recorder(strict=False))

  def _call_loss(self, rows: Any) -> tf.Tensor:
    self.loss(rows, training=False)
    return tf.zeros([])

  def _try_step(
    self, batch: Any, recorder: build_lib.Recorder
  ) -> update_options.Step:
    self._runner = recorder
    with self.variables_restored():
      with self.recorded() as call:
        call.result = autograph.converted(self.train_step)(batch)
      return call.step

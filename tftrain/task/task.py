"""Task: what is learned. A model, an optimizer, and a loss."""

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
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.step import gradients as gradients_lib
from tftrain.step import loss as loss_lib
from tftrain.step import parameter_groups
from tftrain.step import remat as remat_lib
from tftrain.step import step_runner
from tftrain.step import step_summary
from tftrain.step import update as update_lib
from tftrain.task import build as build_lib


class Task:
  """Subclass it and write `loss`; override `train_step` for more.

  Make it inside `strategy.scope()`: its variables live where they are made.
  Every model, optimizer and Keras metric that is an attribute of the Task is
  found, trained, saved and restored. Attributes that start with `_` are not.

  >>> class Regression(Task):
  ...   def loss(self, batch, training):
  ...     x, y = batch
  ...     error = self.model(x, training=training)[:, 0] - y  # [batch]
  ...     return Loss(error**2, absolute_error=tf.abs(error))

  Args:
    model: A Keras model or layer, or a `tf.Module` that can be called.
    optimizer: A Keras optimizer, not built yet.
  """

  def __init__(self, model: Any = None, optimizer: Any = None):
    self.model = model
    self.optimizer = optimizer
    self._options = update_lib.Update()
    self._engine: step_runner.StepRunner | None = None
    # The Engine, or a Recorder while building.
    self._runner: step_runner.StepRunner | build_lib.Recorder = self._recorder()
    self._built: tracking.Owned | None = None
    self._trainable: frozenset[str] = frozenset()
    self._tags: tuple[str, ...] = ()
    self._graph: Any = None
    self._strategy: Any = None
    self._steps: list[update_lib.Step] = []

  def loss(self, batch: Any, training: bool) -> loss_lib.Loss:
    """The loss of each example of a batch, `[batch]`, as a `Loss`."""
    raise errors.TaskError(
      f'{type(self).__name__} has no loss(batch, training); write one that '
      'returns tftrain.Loss(values), or override train_step'
    )

  def train_step(self, batch: Any) -> update_lib.Step:
    """Trains on one global batch; the escape hatch for GANs and the like.

    It runs compiled, once for all replicas. Call `minimize`, or `gradients` and
    `apply`, as often as needed and return the `Step` of the last call; the
    metrics of all are reported, and a step counts as finite only if all were.
    """
    return self.minimize(self.loss, batch)

  @autograph.unconverted
  def minimize(
    self,
    loss: Callable[..., loss_lib.Loss],
    batch: Any,
    variables: Any = None,
    optimizer: Any = None,
    name: str = '',
    when: Any = None,
  ) -> update_lib.Step:
    """Moves `variables` one step down the gradient of `loss`.

    Args:
      loss: `loss(batch, training)` that returns a `Loss`; it sees one
        replica's rows.
      batch: The global batch.
      variables: What to train, variables or a model; None means everything.
      optimizer: Which optimizer; None means `self.optimizer`.
      name: Goes before the names of its metrics: `name/loss`.
      when: A bool; where it is False, nothing is computed and nothing changes.
        Use it instead of `if`: `when=self.critic_optimizer.iterations % 5 == 0`
    """
    chosen, optimizer = self._chosen(variables, optimizer)
    step = self._runner.minimize(loss, batch, chosen, optimizer, when)
    return self._note(step, name)

  @autograph.unconverted
  def gradients(
    self,
    loss: Callable[..., loss_lib.Loss],
    batch: Any,
    variables: Any = None,
    optimizer: Any = None,
  ) -> gradients_lib.Gradients:
    """The first half of `minimize`: mean gradients of the global batch.

    Where a step needs more than one pass (SAM, say), look at `values`, assign
    variables, take other gradients, then `apply` those.

    Args:
      loss: As in `minimize`, and so are the others.
      batch: The global batch.
      variables: Of what.
      optimizer: Which optimizer will apply them.
    """
    chosen, optimizer = self._chosen(variables, optimizer)
    return self._runner.gradients(loss, batch, chosen, optimizer)

  @autograph.unconverted
  def apply(
    self, gradients: gradients_lib.Gradients, name: str = ''
  ) -> update_lib.Step:
    """The second half of `minimize`: clips, checks, applies."""
    return self._note(self._runner.apply(gradients), name)

  def eval_step(self, batch: Any) -> Mapping[str, tuple[tf.Tensor, tf.Tensor]]:
    """Metric name -> (weighted sum, sum of weights) over a global batch."""

    def add_up(rows: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
      result = autograph.converted(self.loss)(rows, training=False)
      sums = loss_lib.add_up(
        result, replica_batch.batch_size(rows), self._regularization()
      )
      return sums.weight, dict(sums.metrics)

    with self.calls():
      weight, sums = replica_batch.sum_over_replicas(add_up, batch)
    return {name: (value, weight) for name, value in sums.items()}

  def collect(self, batch: Any) -> Mapping[str, tf.Tensor]:
    """What `host_metrics` need of each example: name -> `[batch, ...]`."""
    return {'outputs': self.serve(self.features(batch))}

  def host_metrics(
    self,
  ) -> Mapping[str, Callable[[Mapping[str, np.ndarray]], float]]:
    """Name -> NumPy function of all that was collected in an evaluation.

    For what is no mean over examples: AUC, F1, BLEU.
    """
    return {}

  def serve(self, features: Any) -> Any:
    """What an exported model computes; override to add a softmax, say."""
    return self.model(features, training=False)

  def signatures(self, features: Any) -> Mapping[str, Any]:
    """What else an export offers: name -> `Signature`.

    Args:
      features: A real batch of what `serve` takes, for examples.
    """
    del features
    return {}

  def features(self, batch: Any) -> Any:
    """What `serve` takes, out of a batch: its first part, or all of it."""
    return batch[0] if isinstance(batch, tuple | list) else batch

  def artifacts(self, batch: Any) -> Mapping[str, Any]:
    """What to look at: images, texts and more, made after each evaluation.

    It runs eagerly, on the first batch of the evaluation's data.

    Returns:
      Name -> images `[images, height, width, channels]`, uint8 or 0 to 1; a
      text in Markdown; a tftrain.summary.Audio, Table, Histogram or PrCurve; or a
      matplotlib Figure. TensorBoard shows them.
    """
    del batch
    return {}

  def averaged(self) -> contextlib.AbstractContextManager[None]:
    """The moving averages in the place of the weights, for a while.

    What evaluates and exports does so in this context. Training is not touched:
    afterwards the weights are what they were, to the bit.
    """
    engine = self._engine
    return engine.averaged() if engine else contextlib.nullcontext()

  @property
  def metrics(self) -> dict[str, Any]:
    """Keras metrics among the attributes, by the name they report under."""
    return {metric.name: metric for metric in self._owned().metrics.values()}

  @property
  def optimizers(self) -> dict[str, Any]:
    """Optimizers among the attributes, by name."""
    return dict(self._owned().optimizers)

  # What Trainers, Evaluators and exports use.

  def build(
    self, batch: Any, options: update_lib.Update | None = None
  ) -> tuple[str, ...]:
    """Creates and checks everything that depends on data; called once.

    Runs the step on one real batch, eagerly and without effect: lazily built
    layers get their variables, a wrong shape or label shows with a Python
    stack, the variables that no gradient reaches become known. Then optimizers
    are built, and later new variables are refused.

    Returns:
      The names of what `train_step` reports.

    Raises:
      TaskError: No optimizer, nothing to train, or variables that were created
        outside the strategy's scope.
      ConfigError: Options that do not fit the Task.
    """
    if self._engine:  # an Evaluator came before, or another Trainer
      self._check_same(options)
      return self._tags
    self._options = options or update_lib.Update()
    self._strategy = tf.distribute.get_strategy()
    with self._strategy.scope():
      self._create_variables(batch)
      owned = tracking.owned_by(self)
      build_lib.prepare(owned, self._options)
      self._trainable = frozenset(owned.trainable)
      again = remat_lib.chosen(owned, self._options.remat)
      recorder = self._recorder(recomputed=list(again.values()))
      step = self._try_step(batch, recorder)
      self._built = owned
      self._engine = recorder.make_engine(owned)
      self._runner = self._engine
    self._tags = tuple(step.sums)
    return self._tags

  def _check_same(self, options: update_lib.Update | None) -> None:
    """Raises if it was built for another strategy or with other options."""
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

  @property
  def is_built(self) -> bool:
    return self._engine is not None

  @property
  def engine(self) -> step_runner.StepRunner:
    assert self._engine is not None, 'build comes first'
    return self._engine

  def calls(self) -> contextlib.AbstractContextManager[None]:
    """Layers as they are called in a compiled function."""
    return self._engine.calls() if self._engine else contextlib.nullcontext()

  def run_train_step(
    self, batch: Any, measure: update_lib.Measure | None = None
  ) -> update_lib.Step:
    """`train_step`, by way of AutoGraph if it is the user's own.

    Args:
      batch: The global batch.
      measure: Whether to look at what the updates do; None means no.
    """
    self._steps = []
    self._graph = None
    if not tf.executing_eagerly():
      self._graph = tf.compat.v1.get_default_graph()
    before = self._runner.moving()
    with self._runner.step(measure or update_lib.Measure()):
      last = autograph.converted(self.train_step)(batch)
    step = _combined(last, self._steps)
    self._steps = []
    self._runner.put_back_unless(step.finite, before)
    return step

  def check_unchanged(self) -> None:
    """Raises TaskError if other variables are trainable than when built."""
    trainable = frozenset(self._owned().trainable)
    if trainable != self._trainable:
      name = min(trainable ^ self._trainable)
      raise errors.TaskError(
        f'whether {name} is trainable changed after the Trainer was made; '
        'freeze layers before'
      )
    self.engine.check_unchanged()

  @contextlib.contextmanager
  def untouched(self) -> Iterator[None]:
    """Puts every variable back to its value: for trying things out."""
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
  def seeds_kept(self) -> Iterator[None]:
    """Puts the states of seed generators back: evaluating may draw noise."""
    states = [generator.state.value for generator in self._owned().seeds]
    before = [state.read_value() for state in states]
    try:
      yield
    finally:
      for state, value in zip(states, before, strict=True):
        state.assign(value)

  def all_variables(self) -> list[tf.Variable]:
    """Every variable of the models, as TensorFlow sees it."""
    owned = self._owned().variables
    return [variables_lib.raw(variable) for variable in owned.values()]

  # State: name -> value. Whoever saves needs to know nothing else of a Task.

  def read_state(self) -> dict[str, tf.Tensor]:
    saved = self._owned().saved
    state = {
      name: variables_lib.raw(v).read_value() for name, v in saved.items()
    }
    for name, applier in self.engine.appliers().items():
      for key, value in applier.read_state().items():
        state[f'{name}/{key}'] = value
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    for name, variable in self._owned().saved.items():
      variables_lib.raw(variable).assign(state[name], read_value=False)
    for name, applier in self.engine.appliers().items():
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

  def _chosen(self, variables: Any, optimizer: Any) -> tuple[list[Any], Any]:
    """What to train, without what is frozen; and by which optimizer."""
    owned = self._owned()
    names = {id(variable): name for name, variable in owned.variables.items()}
    given = owned.trainable.values() if variables is None else variables
    given = getattr(given, 'trainable_variables', given)  # a model will do
    chosen = [
      variable
      for variable in given
      if not parameter_groups.matches(
        self._options.freeze, names.get(id(variable), '')
      )
    ]
    return chosen, self.optimizer if optimizer is None else optimizer

  def _note(self, step: update_lib.Step, name: str) -> update_lib.Step:
    if not tf.executing_eagerly() and step.finite.graph is not self._graph:
      raise errors.TaskError(
        f'train_step of {type(self).__name__} updates inside an `if` or a '
        'loop; call minimize(..., when=condition) instead'
      )
    prefix = f'{name}/' if name else ''
    named = {f'{prefix}{key}': value for key, value in step.sums.items()}
    self._steps.append(step._replace(sums=named))
    return self._steps[-1]

  def _recorder(
    self, *, recomputed: Sequence[Any] = (), strict: bool = True
  ) -> build_lib.Recorder:
    return build_lib.Recorder(
      type(self).__name__,
      self._regularization,
      self._options,
      recomputed=recomputed,
      strict=strict,
    )

  def _create_variables(self, batch: Any) -> None:
    """Calls every model once, so that lazily built layers are built."""
    if type(self).loss is not Task.loss:
      with self.untouched():
        rows = replica_batch.first_part(batch, self._options.accumulate)
        replica_batch.run_on_rows(self._call_loss, rows)
    if type(self).train_step is not Task.train_step:
      self._try_step(batch, self._recorder(strict=False))

  def _call_loss(self, rows: Any) -> tf.Tensor:
    self.loss(rows, training=False)
    return tf.zeros([])

  def _try_step(
    self, batch: Any, recorder: build_lib.Recorder
  ) -> update_lib.Step:
    self._runner = recorder
    with self.untouched():
      return self.run_train_step(batch)

  def _regularization(self) -> Any:
    layers = self._owned().layers.values()
    inner = {
      id(part)
      for layer in layers
      for part in layer._flatten_layers(include_self=False)
    }
    outer = [layer for layer in layers if id(layer) not in inner]
    terms = [term for layer in outer for term in layer.losses]
    return tf.add_n(terms) if terms else 0.0


def _combined(last: Any, steps: Sequence[update_lib.Step]) -> update_lib.Step:
  """One Step for all that a train_step took."""
  if not isinstance(last, update_lib.Step):
    raise errors.TaskError(
      f'train_step returned {type(last).__name__}; return what minimize() '
      'returned'
    )
  sums = {name: v for step in steps for name, v in step.sums.items()}
  sums.update(last.sums)
  if len(steps) == 1:
    return last._replace(sums=sums)
  finite = tf.reduce_all(tf.stack([step.finite for step in steps]))
  survives = tf.stack([step.finite | step.skipped for step in steps])
  skipped = ~finite & tf.reduce_all(survives)
  loss, norm = last.loss, last.gradient_norm
  for step in reversed(steps):  # those of the first that failed, if one did
    loss = tf.where(step.finite, loss, step.loss)
    norm = tf.where(step.finite, norm, step.gradient_norm)
  sums = update_lib.counted_if(finite, sums)  # all of them count, or none
  return update_lib.Step(finite, skipped, loss, norm, sums)

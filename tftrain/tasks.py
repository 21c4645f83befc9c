"""Task: what is learned. A model, an optimizer, and a loss."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
from typing import Any

import keras
import tensorflow as tf

from tftrain import autographs
from tftrain import buckets
from tftrain import builds
from tftrain import errors
from tftrain import losses
from tftrain import strategies
from tftrain import updates
from tftrain import variables as variables_lib


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
    self._updates: dict[int, updates.Update] = {}
    self._recorder: builds.Recorder | None = None
    self._owned: variables_lib.Owned | None = None
    self._steps: list[updates.Step] = []
    self._tags: tuple[str, ...] = ()
    self._trainable: frozenset[str] = frozenset()

  def loss(self, batch: Any, training: bool) -> losses.Loss:
    """The loss of each example of a batch, `[batch]`, as a `Loss`."""
    raise errors.TaskError(
      f'{type(self).__name__} has no loss(batch, training); write one that '
      'returns tftrain.Loss(values), or override train_step'
    )

  def train_step(self, batch: Any) -> updates.Step:
    """Trains on one global batch; the escape hatch for GANs and the like.

    It runs compiled, once for all replicas. Call `minimize` as often as
    needed and return the `Step` of the last call; the metrics of all are
    reported, and a step counts as finite only if all were.
    """
    return self.minimize(self.loss, batch)

  @autographs.unconverted
  def minimize(
    self,
    loss: Callable[..., losses.Loss],
    batch: Any,
    variables: Sequence[Any] | None = None,
    optimizer: Any = None,
    name: str = '',
  ) -> updates.Step:
    """Moves `variables` one step down the gradient of `loss`.

    Args:
      loss: `loss(batch, training)` that returns a `Loss`; it sees one
        replica's rows.
      batch: The global batch.
      variables: What to train; None means every trainable variable.
      optimizer: Which optimizer; None means `self.optimizer`.
      name: Goes before the names of its metrics: `name/loss`.
    """
    optimizer = self.optimizer if optimizer is None else optimizer
    if variables is None:
      variables = list(variables_lib.owned_by(self).trainable.values())
    if self._recorder is not None:
      step = self._recorder.record(loss, batch, variables, optimizer)
    else:
      step = self._minimize(loss, batch, variables, optimizer)
    prefix = f'{name}/' if name else ''
    named = {f'{prefix}{key}': value for key, value in step.sums.items()}
    self._steps.append(step._replace(sums=named))
    return self._steps[-1]

  def _minimize(
    self,
    loss: Callable[..., losses.Loss],
    batch: Any,
    variables: Sequence[Any],
    optimizer: Any,
  ) -> updates.Step:
    update = self._updates[id(optimizer)]
    connected = {id(variable) for variable in update.trained.values()}
    trained = [v for v in variables if id(v) in connected]
    return updates.minimize(
      update,
      autographs.converted(loss),
      batch,
      trained,
      self._regularization,
    )

  def run_train_step(self, batch: Any) -> updates.Step:
    """`train_step`, by way of AutoGraph if it is the user's own."""
    self._steps = []
    last = autographs.converted(self.train_step)(batch)
    if not isinstance(last, updates.Step):
      raise errors.TaskError(
        f'train_step returned {type(last).__name__}; return what minimize() '
        'returned'
      )
    steps, self._steps = self._steps, []
    flags = [step.finite for step in steps]
    finite = flags[0] if len(flags) == 1 else tf.reduce_all(tf.stack(flags))
    sums = {name: v for step in steps for name, v in step.sums.items()}
    return last._replace(finite=finite, sums={**sums, **last.sums})

  def eval_step(self, batch: Any) -> Mapping[str, tuple[tf.Tensor, tf.Tensor]]:
    """Metric name -> (weighted sum, sum of weights) over a global batch."""

    def add_up(rows: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
      result = autographs.converted(self.loss)(rows, training=False)
      sums = losses.add_up(
        result, strategies.batch_size(rows), self._regularization()
      )
      return sums.weight, dict(sums.metrics)

    weight, sums = strategies.sum_over_replicas(add_up, batch)
    return {name: (value, weight) for name, value in sums.items()}

  def serve(self, features: Any) -> Any:
    """What an exported model computes; override to add a softmax, say."""
    return self.model(features, training=False)

  def features(self, batch: Any) -> Any:
    """What `serve` takes, out of a batch: its first part, or all of it."""
    return batch[0] if isinstance(batch, tuple | list) else batch

  @property
  def metrics(self) -> dict[str, Any]:
    """Keras metrics among the attributes, by the name they report under."""
    owned = self._owned or variables_lib.owned_by(self)
    return {metric.name: metric for metric in owned.metrics.values()}

  @property
  def optimizers(self) -> dict[str, Any]:
    """Optimizers among the attributes, by name."""
    owned = self._owned or variables_lib.owned_by(self)
    return dict(owned.optimizers)

  def build(self, batch: Any) -> tuple[str, ...]:
    """Creates and checks everything that depends on data; called once.

    Runs the loss on one real batch, eagerly and without effect: lazily built
    layers get their variables, a wrong shape or label shows with a Python
    stack, the variables that no gradient reaches become known. Then optimizers
    are built, and later new variables are refused.

    Returns:
      The names of what `train_step` reports.

    Raises:
      TaskError: No optimizer, nothing to train, or variables that were created
        outside the strategy's scope.
    """
    if self._tags:  # an Evaluator came before, or another Trainer
      return self._tags
    strategy = tf.distribute.get_strategy()
    with strategy.scope():
      recorder = builds.Recorder(type(self).__name__, self._regularization)
      step = self._try_step(batch, recorder)
      self._owned = owned = variables_lib.owned_by(self)
      for name, variable in owned.variables.items():
        if not strategy.extended.variable_created_in_scope(
          buckets.raw(variable)
        ):
          raise errors.TaskError(
            f'variable {name} was created outside the strategy; build the '
            'model inside `with strategy.scope():` (or pass Experiment a '
            'function that builds it)'
          )
      own_step = type(self).train_step is not Task.train_step
      self._trainable = frozenset(owned.trainable)
      self._updates = recorder.make_updates(owned, own_step=own_step)
    self._tags = tuple(step.sums)
    return self._tags

  def check_unchanged(self) -> None:
    """Raises TaskError if other variables are trainable than when built."""
    assert self._owned is not None, 'build comes first'
    trainable = frozenset(self._owned.trainable)
    if trainable != self._trainable:
      name = min(trainable ^ self._trainable)
      raise errors.TaskError(
        f'whether {name} is trainable changed after the Trainer was made; '
        'freeze layers before'
      )

  def _try_step(self, batch: Any, recorder: builds.Recorder) -> updates.Step:
    if type(self).loss is not Task.loss:
      with self.untouched():
        self.loss(batch, training=False)  # creates the model's variables
    self._recorder = recorder
    try:
      with self.untouched():
        return self.run_train_step(batch)
    finally:
      self._recorder = None

  @property
  def is_built(self) -> bool:
    return self._owned is not None

  @contextlib.contextmanager
  def untouched(self) -> Iterator[None]:
    """Puts every variable back to its value: for trying things out."""
    owned = variables_lib.owned_by(self)
    in_metrics = [v for m in owned.metrics.values() for v in m.variables]
    everything = [
      buckets.raw(v) for v in [*owned.variables.values(), *in_metrics]
    ]
    before = [tf.identity(variable.read_value()) for variable in everything]
    try:
      yield
    finally:
      for variable, value in zip(everything, before, strict=True):
        variable.assign(value)

  def refresh(self) -> None:
    """Called once before each block of steps."""
    for update in self._updates.values():
      update.refresh()

  def all_variables(self) -> list[tf.Variable]:
    """Every variable of the models, as TensorFlow sees it."""
    owned = self._owned or variables_lib.owned_by(self)
    return [buckets.raw(variable) for variable in owned.variables.values()]

  # State: name -> value. Whoever saves needs to know nothing else of a Task.

  def read_state(self) -> dict[str, tf.Tensor]:
    state = {}
    for name, variable in self._saved_variables().items():
      state[name] = buckets.raw(variable).read_value()
    for name, update in self._named_updates().items():
      for key, value in update.read_state().items():
        state[f'{name}/{key}'] = value
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    for name, variable in self._saved_variables().items():
      buckets.raw(variable).assign(state[name])
    for name, update in self._named_updates().items():
      prefix = f'{name}/'
      update.write_state(
        {
          key.removeprefix(prefix): value
          for key, value in state.items()
          if key.startswith(prefix)
        }
      )

  def _saved_variables(self) -> dict[str, Any]:
    assert self._owned is not None, 'build comes first'
    saved = dict(self._owned.variables)
    for name, metric in self._owned.metrics.items():
      for index, variable in enumerate(metric.variables):
        saved[f'{name}/{index}_{variable.name}'] = variable
    return saved

  def _named_updates(self) -> dict[str, updates.Update]:
    assert self._owned is not None, 'build comes first'
    return {
      name: self._updates[id(optimizer)]
      for name, optimizer in self._owned.optimizers.items()
      if id(optimizer) in self._updates
    }

  def _regularization(self) -> Any:
    layers = (self._owned or variables_lib.owned_by(self)).layers.values()
    inner = {
      id(part)
      for layer in layers
      for part in layer._flatten_layers(include_self=False)
    }
    outer = [layer for layer in layers if id(layer) not in inner]
    terms = [term for layer in outer for term in layer.losses]
    return tf.add_n(terms) if terms else 0.0


class SupervisedTask(Task):
  """The common case: batches of (features, labels[, weights]).

  Args:
    model: Maps features to predictions.
    loss: A Keras loss object, or a function of (labels, predictions) that
      returns the loss of each example, `[batch]`.
    optimizer: A Keras optimizer.
    metrics: Name -> function of (labels, predictions) that returns a value of
      each example, averaged exactly; or a Keras metric such as AUC.
  """

  def __init__(
    self,
    model: Any,
    loss: Callable[[Any, Any], Any],
    optimizer: Any,
    metrics: Mapping[str, Any] | None = None,
  ):
    super().__init__(model, optimizer)
    if not callable(loss):
      raise errors.TaskError(
        f'loss = {loss!r} cannot be called; give a function or a Keras loss '
        'object such as keras.losses.MeanSquaredError()'
      )
    if metrics is not None and not isinstance(metrics, Mapping):
      raise errors.TaskError(
        'metrics is no dictionary; give {name: function or Keras metric}'
      )
    self._loss = loss
    self._means: dict[str, Callable[[Any, Any], Any]] = {}
    self.keras_metrics = []
    for name, metric in (metrics or {}).items():
      if isinstance(metric, keras.Metric):
        metric.name = name
        self.keras_metrics.append(metric)
      else:
        self._means[name] = metric

  def loss(self, batch: Any, training: bool) -> losses.Loss:
    features, labels, weights = self._unpack(batch)
    predictions = self.model(features, training=training)
    for metric in self.keras_metrics:
      metric.update_state(labels, predictions, sample_weight=weights)
    means = {
      name: autographs.converted(function)(labels, predictions)
      for name, function in self._means.items()
    }
    values = _per_example_loss(self._loss, labels, predictions)  # [batch]
    return losses.Loss(values, weights, **means)

  def check_labels(self, smallest: int, largest: int, batch: Any) -> None:
    """Raises InputError if class labels do not fit the model's outputs."""
    name = getattr(self._loss, '__name__', type(self._loss).__name__)
    if not _snake_like(name).startswith('sparsecategorical'):
      return
    classes = self.model(self._unpack(batch)[0], training=False).shape[-1]
    if smallest < 0 or largest >= classes:
      raise errors.InputError(
        f'labels range from {smallest} to {largest} but the model has '
        f'{classes} outputs (classes 0 to {classes - 1}); correct the labels '
        'or the last layer'
      )

  def _unpack(self, batch: Any) -> tuple[Any, Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
      raise errors.InputError(
        f'SupervisedTask needs batches of (features, labels) or (features, '
        f'labels, weights), got {type(batch).__name__}; for whole arrays give '
        'tftrain.Arrays((x, y), batch_size), for others write a Task'
      )
    return (*batch, None) if len(batch) == 2 else tuple(batch)


def _snake_like(name: str) -> str:
  return name.replace('_', '').lower()


def _per_example_loss(loss: Any, labels: Any, predictions: Any) -> Any:
  """The unreduced loss; a Keras loss object would divide it by itself."""
  if not isinstance(loss, keras.losses.Loss):
    return autographs.converted(loss)(labels, predictions)
  masked = getattr(predictions, '_keras_mask', None) is not None
  if masked or getattr(loss, 'ignore_class', None) is not None:
    raise errors.TaskError(
      'SupervisedTask knows no masks and no ignore_class; write a Task whose '
      'loss() returns tftrain.Loss(values, weights) with weight 0 for those'
    )
  values = loss.call(labels, predictions)
  # Losses of sequences or images have more dimensions than [batch].
  while values.shape.rank > 1:
    values = tf.reduce_mean(values, axis=-1)
  return values

"""SupervisedTask: a model trained on (features, labels) batches."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tftrain import errors
from tftrain.interop import autograph
from tftrain.interop import compiled_model
from tftrain.interop import layer_losses
from tftrain.interop import mixed_precision
from tftrain.step import loss as loss_lib
from tftrain.task import supervised_outputs
from tftrain.task import task as task_lib


class SupervisedTask(task_lib.Task):
  """A Task for batches of (features, labels[, weights]); it takes what Keras's
  `compile` takes, and means the same.

  Masks that the model computes (`mask_zero`, `Masking`) and `ignore_class`
  become weights of 0: masked elements count in no loss and no metric. A row of
  weight 0 is replaced by a copy of another row before the model sees it, so
  that NaN in it does no harm. docs/losses.md lists the differences from Keras.

  Args:
    model: Maps features to predictions.
    loss: A Keras loss object, its name (`'mse'`), or a function of (labels,
      predictions) that returns the loss of each example or element,
      `[batch, ...]`. For a model of several outputs a dictionary or list of
      those, with the keys of the outputs; the losses are added up, each with a
      denominator of its own, and reported as `<output>_loss`. The `reduction`
      of a loss object means what it means in Keras.
    optimizer: A Keras optimizer that is not built yet, or its name. None for
      a Task that is only evaluated.
    metrics: Name -> function of (labels, predictions) that returns values
      `[batch, ...]`, averaged exactly; or a Keras metric such as AUC. A list
      takes the names of its metrics. If `loss` is a dictionary: output ->
      metric or list of metrics. Elements of weight 0 do not count, all others
      count alike. None means no metrics.
    loss_weights: Output -> factor of its loss, or the factor of the only loss;
      None means 1.
    weighted_metrics: Like `metrics`, but weighted as the loss is.
    class_weight: Class -> weight of its examples, in training only; None, and
      a class that is not in it, mean 1.
    host_metrics: Name -> NumPy function, such as those of scikit-learn, of the
      (labels, predictions) of all examples of an evaluation, `[examples, ...]`.
      Weights are ignored. None means no host metrics.

  Weights in a batch are `[batch]`, or any shape that broadcasts to the losses
  from the left; for several outputs a dictionary or list of such.

  Raises:
    TaskError: If `loss` or a metric cannot be called, or a name is unknown.
  """

  def __init__(
    self,
    model: Any,
    loss: Any,
    optimizer: Any = None,
    metrics: Any = None,
    *,
    loss_weights: Any = None,
    weighted_metrics: Any = None,
    class_weight: Mapping[int, float] | None = None,
    host_metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
  ):
    if isinstance(optimizer, str):
      optimizer = _optimizer(optimizer)
    super().__init__(model, optimizer)
    compiled_model.check_overrides(
      model, own_loss=isinstance(self, _OwnLossTask)
    )
    self._loss = loss
    self._host_metrics = dict(host_metrics or {})
    self._outputs = supervised_outputs.make(
      model, loss, metrics, weighted_metrics, loss_weights
    )
    self._class_weight = class_weight
    if class_weight is not None and len(self._outputs) > 1:
      raise errors.TaskError(
        'class_weight needs a model of one output, as in Keras; give the '
        'batches weights by output'
      )
    self.keras_metrics = [
      metric.function
      for output in self._outputs
      for metric in output.metrics
      if isinstance(metric.function, keras.Metric)
    ]

  @classmethod
  def from_compiled(cls, model: Any, **changes: Any) -> 'SupervisedTask':
    """Returns a Task of what `model.compile` was given.

    A `compute_loss` of the model's own class is used. Its scalar is the mean
    of the batch as Keras sees it, so it is refused beside weights, several
    replicas and accumulation.

    Args:
      model: A compiled Keras model.
      **changes: Arguments of SupervisedTask that replace what was compiled.

    Raises:
      TaskError: If the model is not compiled, or overrides or was compiled
        with what this library does otherwise.
    """
    given = {**compiled_model.arguments(model), **changes}
    if compiled_model.has_own_loss(model):
      return _OwnLossTask(model, **given)
    return cls(model, **given)

  def loss(self, batch: Any, training: bool) -> loss_lib.Loss:
    features, labels, weights = self._unpack(batch)
    features, labels = supervised_outputs.without_ignored_rows(
      features, labels, weights
    )
    predictions = autograph.converted(self.model)(features, training=training)
    class_weight = self._class_weight if training else None
    if class_weight is not None and weights is not None:
      raise errors.TaskError(
        'class_weight beside weights in the batch: which count? Multiply them '
        "into the weights with map, or leave one out (remainder='pad' adds "
        'weights)'
      )
    terms = [
      output.loss(labels, predictions, weights, class_weight)
      for output in self._outputs
    ]
    return sum(terms[1:], terms[0])

  def collect(self, batch: Any) -> Mapping[str, tf.Tensor]:
    features, labels, _ = self._unpack(batch)
    predictions = autograph.converted(self.model)(features, training=False)
    return {
      'labels': labels,
      'predictions': tf.nest.map_structure(
        mixed_precision.in_full, predictions
      ),
    }

  def host_metrics(self) -> Mapping[str, Callable[..., float]]:
    def of_both(function: Callable[[Any, Any], float]) -> Callable[..., float]:
      return lambda all_: function(all_['labels'], all_['predictions'])

    given = self._host_metrics.items()
    return {name: of_both(f) if callable(f) else f for name, f in given}

  def check_labels(self, smallest: int, largest: int, batch: Any) -> None:
    """Raises InputError if class labels do not fit the model's outputs."""
    name = getattr(self._loss, '__name__', type(self._loss).__name__)
    if getattr(self._loss, 'ignore_class', None) is not None:
      return
    if not _snake_like(name).startswith('sparsecategorical'):
      return
    outputs = self.model(self._unpack(batch)[0], training=False)
    if not tf.is_tensor(outputs):
      return  # a dictionary or list: only the loss knows its class outputs
    classes = outputs.shape[-1]
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


class _OwnLossTask(SupervisedTask):
  """A Task whose loss is `compute_loss` of its Keras model."""

  def loss(self, batch: Any, training: bool) -> loss_lib.Loss:
    features, labels, weights = self._unpack(batch)
    compiled_model.check_alone(self.model, weights, self._options.accumulate)
    # Keras's own `compute_loss` adds what layers add; one that does not call
    # it leaves that out.
    with layer_losses.left_to_keras():
      predictions = autograph.converted(self.model)(features, training=training)
      value = compiled_model.compute_loss(
        self.model, features, labels, predictions, training=training
      )
    metrics = {}
    for output in self._outputs:
      found = output.loss(labels, predictions, None).metric_terms
      if self._loss is compiled_model.no_loss:
        found.pop(f'{output.name}_loss', None)
      metrics.update(found)
    return loss_lib.Loss.of_term(loss_lib.Term(value), metrics)


def _optimizer(name: str) -> Any:
  try:
    return keras.optimizers.get(name)
  except ValueError as error:
    raise errors.TaskError(
      f'{name!r} is no optimizer of Keras; give its name, such as "adam", or '
      'an optimizer such as keras.optimizers.Adam()'
    ) from error


def _snake_like(name: str) -> str:
  return name.replace('_', '').lower()

"""SupervisedTask: a model trained on (features, labels) batches."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tftrain import errors
from tftrain.interop import autograph
from tftrain.interop import mixed_precision
from tftrain.step import loss as loss_lib
from tftrain.task import task as task_lib


class SupervisedTask(task_lib.Task):
  """A Task for batches of (features, labels[, weights]).

  Args:
    model: Maps features to predictions.
    loss: A Keras loss object, or a function of (labels, predictions) that
      returns the loss of each example, `[batch]`.
    optimizer: A Keras optimizer that is not built yet.
    metrics: Name -> function of (labels, predictions) that returns a value per
      example, `[batch]`, averaged exactly; or a Keras metric such as AUC. None
      means no metrics.
    host_metrics: Name -> NumPy function, such as those of scikit-learn, of the
      (labels, predictions) of all examples of an evaluation, `[examples, ...]`.
      Weights are ignored. None means no host metrics.

  Raises:
    TaskError: If `loss` cannot be called or `metrics` is not a mapping.
  """

  def __init__(
    self,
    model: Any,
    loss: Callable[[Any, Any], Any],
    optimizer: Any,
    metrics: Mapping[str, Any] | None = None,
    host_metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
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
    self._host_metrics = dict(host_metrics or {})
    self._means: dict[str, Callable[[Any, Any], Any]] = {}
    self.keras_metrics = []
    for name, metric in (metrics or {}).items():
      if isinstance(metric, keras.Metric):
        metric.name = name
        self.keras_metrics.append(metric)
      else:
        self._means[name] = metric

  def loss(self, batch: Any, training: bool) -> loss_lib.Loss:
    features, labels, weights = self._unpack(batch)
    model = autograph.converted(self.model)
    outputs = model(features, training=training)
    _refuse_masks(self._loss, outputs)  # first, as the cast drops Keras masks
    # Half precision is too coarse for a loss.
    predictions = tf.nest.map_structure(mixed_precision.in_full, outputs)
    for metric in self.keras_metrics:
      metric.update_state(labels, predictions, sample_weight=weights)
    means = {
      name: autograph.converted(function)(labels, predictions)
      for name, function in self._means.items()
    }
    values = _per_example_loss(self._loss, labels, predictions)  # [batch]
    return loss_lib.Loss(values, weights, **means)

  def collect(self, batch: Any) -> Mapping[str, tf.Tensor]:
    features, labels, _ = self._unpack(batch)
    predictions = autograph.converted(self.model)(features, training=False)
    return {
      'labels': labels,
      'predictions': mixed_precision.in_full(predictions),
    }

  def host_metrics(self) -> Mapping[str, Callable[..., float]]:
    def of_both(function: Callable[[Any, Any], float]) -> Callable[..., float]:
      return lambda all_: function(all_['labels'], all_['predictions'])

    given = self._host_metrics.items()
    return {name: of_both(f) if callable(f) else f for name, f in given}

  def check_labels(self, smallest: int, largest: int, batch: Any) -> None:
    """Raises InputError if class labels do not fit the model's outputs."""
    name = getattr(self._loss, '__name__', type(self._loss).__name__)
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


def _snake_like(name: str) -> str:
  return name.replace('_', '').lower()


def _refuse_masks(loss: Any, outputs: Any) -> None:
  """Raises TaskError if a Keras loss would ignore masked entries or a class."""
  if not isinstance(loss, keras.losses.Loss):
    return
  masked = any(
    getattr(tensor, '_keras_mask', None) is not None
    for tensor in tf.nest.flatten(outputs)
  )
  if masked or getattr(loss, 'ignore_class', None) is not None:
    raise errors.TaskError(
      'SupervisedTask knows no masks and no ignore_class; write a Task whose '
      'loss() returns tftrain.Loss(values, weights) with weight 0 for those'
    )


def _per_example_loss(loss: Any, labels: Any, predictions: Any) -> Any:
  """Returns the unreduced loss, `[batch]`.

  Calling a Keras loss object would reduce it over the batch.
  """
  if not isinstance(loss, keras.losses.Loss):
    return autograph.converted(loss)(labels, predictions)
  values = loss.call(labels, predictions)
  # Losses of sequences or images have more dimensions than [batch].
  while values.shape.rank > 1:
    values = tf.reduce_mean(values, axis=-1)
  return values

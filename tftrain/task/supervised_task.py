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
from tftrain.task import supervised_outputs
from tftrain.task import task as task_lib


class SupervisedTask(task_lib.Task):
  """A Task for batches of (features, labels[, weights]).

  Masks that the model computes (`mask_zero`, `Masking`) and `ignore_class`
  become weights of 0: masked elements count in no loss and no metric. A row of
  weight 0 is replaced by a copy of another row before the model sees it, so
  that NaN in it does no harm.

  Args:
    model: Maps features to predictions.
    loss: A Keras loss object, its name (`'mse'`), or a function of (labels,
      predictions) that returns the loss of each example or element,
      `[batch, ...]`. For a model of several outputs a dictionary or list of
      those, with the keys of the outputs; the losses are added up, each
      divided by its own weights, and reported as `<output>_loss`.
    optimizer: A Keras optimizer that is not built yet, or its name.
    metrics: Name -> function of (labels, predictions) that returns values
      `[batch, ...]`, averaged exactly; or a Keras metric such as AUC. A list
      takes the names of its metrics. If `loss` is a dictionary: output ->
      metric or list of metrics. None means no metrics.
    host_metrics: Name -> NumPy function, such as those of scikit-learn, of the
      (labels, predictions) of all examples of an evaluation, `[examples, ...]`.
      Weights are ignored. None means no host metrics.
    loss_weights: Output -> factor of its loss; None means 1.

  Weights in a batch are `[batch]`, or any shape that broadcasts to the losses
  from the left; for several outputs a dictionary or list of such.

  Raises:
    TaskError: If `loss` or a metric cannot be called, or a name is unknown.
  """

  def __init__(
    self,
    model: Any,
    loss: Any,
    optimizer: Any,
    metrics: Any = None,
    host_metrics: Mapping[str, Callable[[Any, Any], float]] | None = None,
    *,
    loss_weights: Any = None,
  ):
    if isinstance(optimizer, str):
      optimizer = _optimizer(optimizer)
    super().__init__(model, optimizer)
    self._loss = loss
    self._host_metrics = dict(host_metrics or {})
    self._outputs = supervised_outputs.make(loss, metrics, loss_weights)
    self.keras_metrics = [
      metric
      for output in self._outputs
      for metric in output.keras_metrics.values()
    ]

  def loss(self, batch: Any, training: bool) -> loss_lib.Loss:
    features, labels, weights = self._unpack(batch)
    features, labels = supervised_outputs.without_ignored_rows(
      features, labels, weights
    )
    predictions = autograph.converted(self.model)(features, training=training)
    terms = [
      output.loss(labels, predictions, weights) for output in self._outputs
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

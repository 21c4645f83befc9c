"""Outputs of a supervised model: the loss, metrics and masks of each."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tftrain import errors
from tftrain.interop import autograph
from tftrain.interop import mixed_precision
from tftrain.step import loss as loss_lib

Path = tuple[Any, ...]
"""Keys that lead to an output in a nest of dictionaries and lists."""


@dataclasses.dataclass(frozen=True)
class Output:
  """One output of a model.

  Attributes:
    path: Where the output is; empty if the model has one.
    loss_function: A Keras loss object, or a function of (labels, predictions).
    factor: The factor of the loss.
    means: Name -> function of (labels, predictions) to average.
    keras_metrics: Name -> Keras metric.
  """

  path: Path
  loss_function: Any
  factor: Any
  means: Mapping[str, Callable[[Any, Any], Any]]
  keras_metrics: Mapping[str, Any]

  def loss(self, labels: Any, predictions: Any, weights: Any) -> loss_lib.Loss:
    """Updates the Keras metrics; returns the loss with the other metrics."""
    labels = self._taken('labels', labels)
    outputs = self._taken('outputs', predictions)
    if weights is not None and (self.path == () or _is_nest(weights)):
      weights = self._taken('weights', weights)
    masks = [getattr(o, '_keras_mask', None) for o in tf.nest.flatten(outputs)]
    # Half precision is too coarse for a loss.
    made = tf.nest.map_structure(mixed_precision.in_full, outputs)
    values = _values(self.loss_function, labels, made)
    masks.append(getattr(values, '_keras_mask', None))
    weights = _masked(weights, [mask for mask in masks if mask is not None])
    for metric in self.keras_metrics.values():
      metric.update_state(labels, made, sample_weight=weights)
    means = {
      name: autograph.converted(function)(labels, made)
      for name, function in self.means.items()
    }
    if self.path:
      means[f'{self.name}_loss'] = values
    made_loss: loss_lib.Loss = loss_lib.Loss(values, weights, **means)
    scaled: loss_lib.Loss = made_loss * self.factor
    return scaled

  @property
  def name(self) -> str:
    return '_'.join(map(str, self.path))

  def _taken(self, what: str, nest: Any) -> Any:
    for key in self.path:
      try:
        nest = nest[key]
      except (KeyError, IndexError, TypeError) as error:
        raise errors.TaskError(
          f'SupervisedTask has a loss for output {self.name!r}, but the {what} '
          f'have no {key!r}; give losses, outputs and labels the same keys'
        ) from error
    return nest


def make(losses: Any, metrics: Any, factors: Any) -> list[Output]:
  """Returns the outputs that `losses` tells of.

  Raises:
    TaskError: If a loss or metric cannot be called, or a key or name is
      unknown.
  """
  found = list(_leaves(losses))
  if factors is not None and not _is_nest(losses):
    raise errors.TaskError(
      'loss_weights needs a dictionary or list of losses; multiply the loss'
    )
  known = {path for path, _ in found}
  for name, nest in (('metrics', metrics), ('loss_weights', factors)):
    if nest is not None and _is_nest(losses):
      _check_keys(name, nest, known)
  return [
    Output(
      path,
      _resolved_loss(loss),
      1.0 if factors is None else _at(factors, path, 1.0),
      *_split(path, _at(metrics, path, None) if path else metrics),
    )
    for path, loss in found
  ]


def without_ignored_rows(
  features: Any, labels: Any, weights: Any
) -> tuple[Any, Any]:
  """Replaces the rows of weight 0 by copies of a row that counts.

  They count nowhere, but NaN in them would: a gradient of 0 times NaN is NaN.
  """
  dense = [w for w in tf.nest.flatten(weights) if w is not None]
  if not dense:
    return features, labels
  ignored = tf.reduce_all(
    tf.stack([
      tf.reduce_all(tf.reshape(w == 0, [tf.shape(w)[0], -1]), axis=1)
      for w in map(tf.convert_to_tensor, dense)
    ]),
    axis=0,
  )  # fmt: skip
  counts = tf.argmin(tf.cast(ignored, tf.int32))

  def replace(leaf: Any) -> Any:
    if not isinstance(leaf, tf.Tensor) or not leaf.dtype.is_floating:
      return leaf
    rows = tf.reshape(ignored, [-1] + [1] * (leaf.shape.rank - 1))
    return tf.where(rows, leaf[counts], leaf)

  return (
    tf.nest.map_structure(replace, features),
    tf.nest.map_structure(replace, labels),
  )


def _values(loss: Any, labels: Any, predictions: Any) -> Any:
  """Returns the unreduced loss, `[batch, ...]`.

  Calling a Keras loss object would reduce it over the batch.
  """
  if isinstance(loss, keras.losses.Loss):
    return loss.call(labels, predictions)
  return autograph.converted(loss)(labels, predictions)


def _masked(weights: Any, masks: list[Any]) -> Any:
  """Returns weights times masks, expanded from the left to the larger rank."""
  for mask in masks:
    mask = tf.cast(mask, tf.float32)
    if weights is None:
      weights = mask
      continue
    weights = tf.cast(tf.convert_to_tensor(weights), tf.float32)
    while weights.shape.rank < mask.shape.rank:
      weights = weights[..., tf.newaxis]
    while mask.shape.rank < weights.shape.rank:
      mask = mask[..., tf.newaxis]
    weights = weights * mask
  return weights


def _is_nest(value: Any) -> bool:
  return isinstance(value, Mapping | list | tuple)


def _leaves(nest: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
  if isinstance(nest, Mapping):
    for key, part in nest.items():
      yield from _leaves(part, (*path, key))
  elif isinstance(nest, list | tuple):
    for index, part in enumerate(nest):
      yield from _leaves(part, (*path, index))
  elif nest is not None or not path:
    yield path, nest


def _at(nest: Any, path: Path, default: Any) -> Any:
  for key in path:
    if isinstance(nest, Mapping):
      nest = nest.get(key)
    elif isinstance(nest, list | tuple) and isinstance(key, int):
      nest = nest[key] if key < len(nest) else None
    if nest is None:
      return default
  return nest


def _check_keys(name: str, nest: Any, known: set[Path]) -> None:
  if not isinstance(nest, Mapping):
    return
  first = {path[0] for path in known}
  for key in nest:
    if key not in first:
      raise errors.TaskError(
        f'{name} has {key!r}, which is no output with a loss; there are '
        f'{errors.listing(sorted(map(repr, first)))}'
      )


def _resolved_loss(loss: Any) -> Any:
  if isinstance(loss, str):
    try:
      loss = keras.losses.get(loss)
    except ValueError as error:
      raise errors.TaskError(
        f'loss = {loss!r} is no loss of Keras; give a function or a Keras loss '
        'object such as keras.losses.MeanSquaredError()'
      ) from error
  if not callable(loss):
    raise errors.TaskError(
      f'loss = {loss!r} cannot be called; give a function or a Keras loss '
      'object such as keras.losses.MeanSquaredError()'
    )
  reduction = getattr(loss, 'reduction', 'sum_over_batch_size')
  if reduction not in (
    'sum_over_batch_size',
    'mean_with_sample_weight',
    'mean',
  ):
    raise errors.TaskError(
      f'{type(loss).__name__} has reduction={reduction!r}, which depends on '
      'the number of replicas and micro-batches; use the default, and scale '
      'the learning rate'
    )
  return loss


def _split(path: Path, metrics: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns (functions to average, Keras metrics) by reported name."""
  prefix = ''.join(f'{key}_' for key in path)
  means: dict[str, Any] = {}
  keras_metrics: dict[str, Any] = {}
  for name, metric in _named(path, metrics):
    if isinstance(metric, str):
      metric = _accuracy if metric in ('accuracy', 'acc') else _get(metric)
    name = f'{prefix}{name}'
    if isinstance(metric, keras.Metric):
      metric.name = name
      keras_metrics[name] = metric
    elif callable(metric):
      means[name] = metric
    else:
      raise errors.TaskError(
        f'metric {name!r} is a {type(metric).__name__}; give a function or a '
        'Keras metric'
      )
  return means, keras_metrics


def _named(path: Path, metrics: Any) -> Iterator[tuple[str, Any]]:
  if metrics is None:
    return
  if isinstance(metrics, Mapping):
    yield from metrics.items()
    return
  if not isinstance(metrics, list | tuple) and not path:
    raise errors.TaskError(
      'metrics is no dictionary or list; give {name: function or Keras metric}'
    )
  for metric in metrics if isinstance(metrics, list | tuple) else [metrics]:
    if isinstance(metric, str):
      yield metric, metric
    else:
      names = (getattr(metric, key, None) for key in ('name', '__name__'))
      yield str(next(filter(None, names), 'metric')), metric


def _get(name: str) -> Any:
  try:
    return keras.metrics.get(name)
  except ValueError as error:
    raise errors.TaskError(
      f'metric {name!r} is no metric of Keras; give a function or a Keras '
      'metric'
    ) from error


def _accuracy(labels: Any, predictions: Any) -> Any:
  """The accuracy that Keras chooses by the shapes."""
  functions = keras.metrics
  classes = predictions.shape[-1]
  if classes == 1:
    return functions.binary_accuracy(labels, predictions)
  if (
    labels.shape.rank == predictions.shape.rank and labels.shape[-1] == classes
  ):
    return functions.categorical_accuracy(labels, predictions)
  return functions.sparse_categorical_accuracy(labels, predictions)

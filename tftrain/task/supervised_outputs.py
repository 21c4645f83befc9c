"""Outputs of a supervised model: the loss, metrics and masks of each."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import transforms
from tftrain.interop import autograph
from tftrain.interop import mixed_precision
from tftrain.step import loss as loss_lib
from tftrain.task import supervised_metrics

Path = tuple[Any, ...]
"""Keys that lead to an output in a nest of dictionaries and lists."""

# Keras's name of a reduction -> that of a Term, and whether the denominator is
# the sum of the weights. Otherwise it counts elements, those of weight 0 too.
_REDUCTIONS = {
  'sum_over_batch_size': ('mean', False),
  'mean': ('mean', False),
  'mean_with_sample_weight': ('mean', True),
  'sum': ('sum', False),
  'none': ('none', False),
  None: ('none', False),
}


@dataclasses.dataclass(frozen=True)
class Output:
  """One output of a model.

  Attributes:
    path: Where the output is; empty if the model has one.
    name: The reported name; empty if the model has one output.
    order: The names of all outputs, which also stand for positions in a list.
    is_only: Whether no other output has a loss.
    loss_function: A Keras loss object, or a function of (labels, predictions).
    factor: The factor of the loss.
    metrics: The metrics.
  """

  path: Path
  name: str
  order: Sequence[str]
  is_only: bool
  loss_function: Any
  factor: Any
  metrics: Sequence[supervised_metrics.Metric]

  def loss(
    self,
    labels: Any,
    predictions: Any,
    weights: Any,
    class_weight: Mapping[int, float] | None = None,
  ) -> loss_lib.Loss:
    """Updates the Keras metrics; returns the loss with the other metrics.

    Args:
      labels: The labels of all outputs.
      predictions: All outputs of the model.
      weights: Weights of this output, or of all by key, or None.
      class_weight: Class -> weight; None means 1.
    """
    labels = self._taken('labels', labels)
    outputs = self._taken('outputs', predictions)
    if weights is not None and (self.path == () or _is_nest(weights)):
      weights = self._taken('weights', weights)
    masks = [getattr(o, '_keras_mask', None) for o in tf.nest.flatten(outputs)]
    # Half precision is too coarse for a loss.
    made = tf.nest.map_structure(mixed_precision.in_full, outputs)
    values = _values(self.loss_function, labels, made)
    masks.append(getattr(values, '_keras_mask', None))
    masks = [mask for mask in masks if mask is not None]
    if class_weight is not None:
      weights = _of_classes(class_weight, labels, made)
    term = self._term(values, weights, masks)
    metrics = self._measured(labels, made, term)
    if not self.is_only:
      metrics[f'{self.name}_loss'] = term
    return loss_lib.Loss.of_term(term._replace(factor=self.factor), metrics)

  def _term(self, values: Any, weights: Any, masks: list[Any]) -> loss_lib.Term:
    """Returns the values, weighted and reduced as Keras does."""
    asked = getattr(self.loss_function, 'reduction', 'sum_over_batch_size')
    reduction, by_weight = _REDUCTIONS[asked]
    weighted = _masked(weights, masks)
    rank = tf.convert_to_tensor(values).shape.rank
    if rank == 0 and (weighted is not None or reduction != 'mean'):
      raise errors.TaskError(
        f'loss {_name_of(self.loss_function)} returned a scalar beside '
        f'{"weights or a mask" if weighted is not None else "a reduction"}, '
        'whose mean is already made; return values [batch, ...]'
      )
    if weighted is None or by_weight:
      return loss_lib.Term(values, weighted, reduction=reduction)
    counts = _masked(None if weights is None else _present(weights), masks)
    return loss_lib.Term(values, weighted, counts, reduction=reduction)

  def _measured(
    self, labels: Any, predictions: Any, term: loss_lib.Term
  ) -> dict[str, loss_lib.Term]:
    """Updates the Keras metrics; returns name -> values of the others."""
    kept = term.weights
    if kept is not None:  # what has no weight is in no metric
      kept = tf.cast(tf.convert_to_tensor(kept) != 0, tf.float32)
    found = {}
    for metric in self.metrics:
      weights = term.weights if metric.is_weighted else kept
      if isinstance(metric.function, keras.Metric):
        metric.function.update_state(labels, predictions, sample_weight=weights)
      else:
        values = autograph.converted(metric.function)(labels, predictions)
        found[metric.name] = loss_lib.Term(values, weights)
    return found

  def _taken(self, what: str, nest: Any) -> Any:
    """Returns the part of this output; a single one needs no key."""
    if not _is_nest(nest) and self.is_only and len(self.path) == 1:
      return nest
    for key in self.path:
      try:
        nest = nest[self._key(nest, key)]
      except (KeyError, IndexError, TypeError) as error:
        raise errors.TaskError(
          f'SupervisedTask has a loss for output {self.name!r}, but the {what} '
          f'have no {key!r}; give losses, outputs and labels the same keys'
        ) from error
    return nest

  def _key(self, nest: Any, key: Any) -> Any:
    """Returns the key of an output in a dictionary or a list."""
    if not _is_nest(nest):
      raise TypeError('a tensor has no outputs')
    if isinstance(nest, Mapping):
      return self.order[key] if isinstance(key, int) and self.order else key
    return key if isinstance(key, int) else self.order.index(key)


def make(
  model: Any, losses: Any, metrics: Any, weighted_metrics: Any, factors: Any
) -> list[Output]:
  """Returns the outputs that `losses` tells of.

  Raises:
    TaskError: If a loss or metric cannot be called, or a key or name is
      unknown.
  """
  order = _output_names(model)
  losses = _for_all_outputs(model, losses)
  found = list(_leaves(losses))
  if len(order) == 1 and len(found) > 1:
    raise errors.TaskError(
      f'{len(found)} losses for the one output {order[0]!r} of the model; add '
      'them up in a function of (labels, predictions)'
    )
  if factors is not None and not _is_nest(losses):
    factors = _only_factor(factors)
  known = {path for path, _ in found}
  for name, nest in (
    ('metrics', metrics),
    ('weighted_metrics', weighted_metrics),
    ('loss_weights', factors),
  ):
    if nest is not None and _is_nest(losses):
      _check_keys(name, nest, known, order)
  outputs = []
  for place, (path, loss) in enumerate(found):
    name = _output_name(path, order)

    def own(nest: Any, path: Path = path, place: int = place) -> Any:
      found = _at(nest, path, place, None, order) if path else nest
      if path and found is not None and not _is_nest(found):
        found = [found]
      if isinstance(found, list | tuple) and len(found) == 1:
        found = found[0] if isinstance(found[0], list | tuple) else found
      return found

    outputs.append(
      Output(
        path,
        name,
        order,
        len(found) == 1,
        _resolved_loss(loss),
        _factor(factors, path, place, order),
        supervised_metrics.make(name, own(metrics), own(weighted_metrics)),
      )
    )
  return outputs


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
  if tf.is_tensor(predictions) and not _is_nest(labels):
    labels, predictions = _same_rank(labels, predictions)
  return autograph.converted(loss)(labels, predictions)


def _same_rank(labels: Any, predictions: Any) -> tuple[Any, Any]:
  """Returns both, `[batch]` beside `[batch, 1]` expanded, as Keras does.

  A difference of the two would otherwise be `[batch, batch]`.
  """
  labels = tf.convert_to_tensor(labels)
  ranks = labels.shape.rank, predictions.shape.rank
  if ranks == (1, 2) and predictions.shape[-1] == 1:
    labels = labels[:, tf.newaxis]
  elif ranks == (2, 1) and labels.shape[-1] == 1:
    predictions = predictions[:, tf.newaxis]
  return labels, predictions


def _present(weights: Any) -> tf.Tensor:
  """Returns 1 for each weight, except those of padding."""
  weights = tf.cast(tf.convert_to_tensor(weights), tf.float32)
  return tf.cast(~transforms.is_padding(weights), tf.float32)


def _of_classes(
  class_weight: Mapping[int, float], labels: Any, predictions: Any
) -> tf.Tensor:
  """Returns the weight of the class of each example or element."""
  labels = tf.convert_to_tensor(labels)
  if labels.shape.rank > 1 and labels.shape[-1] == 1:
    labels = tf.squeeze(labels, -1)
  elif labels.shape.rank > 1 and labels.shape.rank == predictions.shape.rank:
    labels = tf.argmax(labels, -1)
  labels = tf.cast(labels, tf.int64)
  weights = tf.ones(tf.shape(labels), tf.float32)
  for label, weight in class_weight.items():
    weights = tf.where(labels == label, float(weight), weights)
  return weights


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


def _output_names(model: Any) -> list[str]:
  """Returns the names of all outputs, where the model tells."""
  if isinstance(model, keras.Sequential):
    return [model.name]
  return list(getattr(model, 'output_names', None) or ())


def _for_all_outputs(model: Any, losses: Any) -> Any:
  """Returns one loss for each output of a functional model, as Keras does.

  A function is left as it is: it gets the labels and outputs as they are.
  """
  outputs = getattr(model, 'output', None) if hasattr(model, 'inputs') else None
  is_of_keras = isinstance(losses, str | keras.losses.Loss)
  if not is_of_keras or not _is_nest(outputs):
    return losses
  return tf.nest.map_structure(lambda _: losses, outputs)


def _output_name(path: Path, order: Sequence[str]) -> str:
  """Returns the name as Keras reports it; '' if there is one output."""
  if len(order) == 1:
    return ''
  *_, last = path or ('',)
  if len(path) == 1 and isinstance(last, int) and last < len(order):
    return order[last]
  return '/'.join(map(str, path))


def _leaves(nest: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
  if isinstance(nest, Mapping):
    for key, part in nest.items():
      yield from _leaves(part, (*path, key))
  elif isinstance(nest, list | tuple):
    for index, part in enumerate(nest):
      yield from _leaves(part, (*path, index))
  elif nest is not None or not path:
    yield path, nest


def _at(
  nest: Any, path: Path, place: int, default: Any, order: Sequence[str]
) -> Any:
  """Returns what a nest has for an output, by its keys or by its place."""
  if isinstance(nest, list | tuple) and isinstance(path[0], str):
    return nest[place] if place < len(nest) else default
  for key in path:
    if isinstance(nest, Mapping):
      by_place = isinstance(key, int) and key not in nest and order
      nest = nest.get(order[key] if by_place else key)
    elif isinstance(nest, list | tuple) and isinstance(key, int):
      nest = nest[key] if key < len(nest) else None
    if nest is None:
      return default
  return nest


def _factor(factors: Any, path: Path, place: int, order: Sequence[str]) -> Any:
  if factors is None:
    return 1.0
  return _at(factors, path, place, 1.0, order) if path else factors


def _only_factor(factors: Any) -> Any:
  """Returns the factor of a model with one loss, in whatever it stands."""
  found = tf.nest.flatten(factors)
  if len(found) != 1:
    raise errors.TaskError(
      f'loss_weights has {len(found)} numbers for one loss; give one number'
    )
  return found[0]


def _check_keys(
  name: str, nest: Any, known: set[Path], order: Sequence[str]
) -> None:
  if not isinstance(nest, Mapping):
    return
  first = {path[0] for path in known}
  first |= {order[key] for key in first if isinstance(key, int) and order}
  for key in nest:
    if key not in first:
      raise errors.TaskError(
        f'{name} has {key!r}, which is no output with a loss; there are '
        f'{errors.listing(sorted(map(repr, first)))}'
      )


def _resolved_loss(loss: Any) -> Any:
  if isinstance(loss, str):
    if loss.lower() in ('crossentropy', 'ce'):
      return _crossentropy
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
  return loss


def _name_of(function: Any) -> str:
  name: str = getattr(function, '__name__', type(function).__name__)
  return name


def _crossentropy(labels: Any, predictions: Any) -> Any:
  """The crossentropy that Keras chooses by the shapes."""
  chosen: Callable[..., Any] = supervised_metrics.by_shapes(
    labels,
    predictions,
    keras.losses.binary_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
  )
  return chosen(labels, predictions)

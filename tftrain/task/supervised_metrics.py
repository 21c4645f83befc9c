"""Metrics of one output of a supervised model, named as Keras names them."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

import keras

from tftrain import errors


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric of one output.

  Attributes:
    name: The reported name.
    function: A Keras metric, or a function of (labels, predictions) that
      returns values `[batch, ...]` to average.
    is_weighted: Whether the weights of the batch count, as in Keras's
      `weighted_metrics`.
  """

  name: str
  function: Any
  is_weighted: bool


def make(output: str, metrics: Any, weighted: Any) -> list[Metric]:
  """Returns the metrics of an output.

  Args:
    output: The name of the output; '' if the model has one.
    metrics: Metrics without weights: a dictionary, a list, or one.
    weighted: Metrics with weights.

  Raises:
    TaskError: If a metric cannot be called, or a name is unknown.
  """
  prefix = f'{output}_' if output else ''
  made: dict[str, Metric] = {}
  for nest, is_weighted in ((metrics, False), (weighted, True)):
    for name, function in _named(output, nest):
      full = f'{prefix}{name}'
      if is_weighted and full in made:
        full = f'{prefix}weighted_{name}'
      if full in made:
        raise errors.TaskError(
          f'two metrics are called {full!r}; give one of them another name'
        )
      made[full] = Metric(full, _resolved(full, function), is_weighted)
  return list(made.values())


def by_shapes(
  labels: Any, predictions: Any, binary: Any, categorical: Any, sparse: Any
) -> Any:
  """Returns the one of three that Keras chooses by the shapes."""
  classes = predictions.shape[-1]
  if classes == 1:
    return binary
  if (
    labels.shape.rank == predictions.shape.rank and labels.shape[-1] == classes
  ):
    return categorical
  return sparse


def _resolved(name: str, metric: Any) -> Any:
  if isinstance(metric, str):
    metric = _accuracy if metric in ('accuracy', 'acc') else _get(metric)
  if isinstance(metric, keras.Metric):
    metric.name = name
  elif not callable(metric):
    raise errors.TaskError(
      f'metric {name!r} is a {type(metric).__name__}; give a function or a '
      'Keras metric'
    )
  return metric


def _named(output: str, metrics: Any) -> Iterator[tuple[str, Any]]:
  if metrics is None:
    return
  if isinstance(metrics, Mapping):
    yield from metrics.items()
    return
  if not isinstance(metrics, list | tuple) and not output:
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
  chosen = by_shapes(
    labels,
    predictions,
    keras.metrics.binary_accuracy,
    keras.metrics.categorical_accuracy,
    keras.metrics.sparse_categorical_accuracy,
  )
  return chosen(labels, predictions)

"""Exact means and Keras metrics: updated in the graph, read once per report."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftrain import errors

_TAKEN = ('step', 'source', 'learning_rate', 'loss_scale', 'skipped_steps')


def check_names(means: Sequence[str], keras_metrics: Sequence[str]) -> None:
  """Raises TaskError if two metrics would be reported under one name."""
  names = [*means, *keras_metrics]
  for name in names:
    if name in _TAKEN or names.count(name) > 1:
      raise errors.TaskError(
        f'two things would be reported as {name!r}; rename the metric'
      )


def full_names(trained: Sequence[str], evaluators: Sequence[Any]) -> list[str]:
  """Returns `source/tag` of each metric of training and of Evaluators."""
  names = [f'train/{tag}' for tag in trained]
  return names + [f'eval/{e.name}/{tag}' for e in evaluators for tag in e.tags]


def check_monitored(
  name: str, metric: str, trained: Sequence[str], evaluators: Sequence[Any]
) -> None:
  """Raises ConfigError if a monitored metric is never reported.

  Args:
    name: The object that monitors the metric, for the message.
    metric: Full name of the metric, `source/tag`.
    trained: The tags that training reports.
    evaluators: The Evaluators, which report the other metrics.
  """
  known = full_names(trained, evaluators)
  if metric not in known:
    raise errors.ConfigError(
      f'{name} waits for {metric}, which is never '
      f'reported; there are {", ".join(known)}'
    )


class Means:
  """Running sums and weights of named values, in one float64 variable.

  Additions follow the order of steps, independent of block boundaries, so the
  means do not depend on `steps_per_loop`.

  A name such as `loss#1` is a part of `loss`: the means of all parts are added
  up, each divided by its own weights.

  Args:
    names: The names of the values.
  """

  def __init__(self, names: Sequence[str]):
    self._keys = tuple(names)
    self.names = base_names(names)
    self._zeros = tf.zeros([2 * len(self._keys)], tf.float64)
    self._totals = tf.Variable(self._zeros, trainable=False)

  def add(self, sums: Mapping[str, tuple[tf.Tensor, tf.Tensor]]) -> None:
    """Adds name -> (weighted sum, sum of weights); traceable.

    A missing name adds nothing.
    """
    nothing = (0.0, 0.0)
    pairs = [t for key in self._keys for t in sums.get(key, nothing)]
    self._totals.assign_add(
      tf.cast(tf.stack(pairs), tf.float64), read_value=False
    )

  def read(self) -> dict[str, float]:
    totals = self._totals.numpy()
    means: dict[str, float] = {}
    for index, key in enumerate(self._keys):
      value, weight = totals[2 * index : 2 * index + 2]
      if weight != 0:
        name = _base_name(key)
        means[name] = means.get(name, 0.0) + float(value / weight)
    return means

  def reset(self) -> None:
    self._totals.assign(self._zeros, read_value=False)

  def read_state(self) -> tf.Tensor:
    return self._totals.read_value()

  def write_state(self, value: Any) -> None:
    self._totals.assign(value)


def base_names(names: Sequence[str]) -> tuple[str, ...]:
  """Returns the names as reported: parts such as `loss#1` become one."""
  return tuple(dict.fromkeys(map(_base_name, names)))


def _base_name(name: str) -> str:
  return name.partition('#')[0]


class KerasMetrics:
  """The Keras metrics of a Task, such as AUC, that are not plain means.

  Their state stays local to the replicas until it is read. A result that is
  not a scalar is reported by entry: `f1/0`, `confusion/0/1`; a dictionary by
  key: `f1/macro`.

  Args:
    metrics: Name -> Keras metric, whose variables exist.
  """

  def __init__(self, metrics: Mapping[str, Any]):
    self._metrics = dict(metrics)
    self._compiled_read = tf.function(self._read)
    self.names = tuple(self._read()) if self._metrics else ()

  def read(self) -> dict[str, float]:
    if not self._metrics:
      return {}
    return {name: float(value) for name, value in self._compiled_read().items()}

  def reset(self) -> None:
    for metric in self._metrics.values():
      metric.reset_state()

  def values(self) -> list[Any]:
    """Returns the raw state, which an evaluation saves and restores."""
    return [v.value.read_value() for v in self._variables()]

  def set_values(self, values: Sequence[Any]) -> None:
    for variable, value in zip(self._variables(), values, strict=True):
      variable.value.assign(value, read_value=False)

  def _read(self) -> dict[str, tf.Tensor]:
    return {
      entry: scalar
      for name, metric in self._metrics.items()
      for entry, scalar in _entries(name, metric.result())
    }

  def _variables(self) -> list[Any]:
    return [v for metric in self._metrics.values() for v in metric.variables]


def _entries(name: str, value: Any) -> Iterator[tuple[str, tf.Tensor]]:
  """Yields (name, scalar) of each entry of a metric's result."""
  if isinstance(value, Mapping):
    for key, entry in value.items():
      yield from _entries(f'{name}/{key}', entry)
    return
  if isinstance(value, list | tuple):
    for index, entry in enumerate(value):
      yield from _entries(f'{name}/{index}', entry)
    return
  value = tf.convert_to_tensor(value)
  if value.shape.rank == 0:
    yield name, value
    return
  if value.shape.rank is None or value.shape[0] is None:
    raise errors.TaskError(
      f'metric {name!r} has a result of shape {value.shape}; give it a shape '
      'that is known (tf.ensure_shape), or report entries of its own'
    )
  for index, entry in enumerate(tf.unstack(value)):
    yield from _entries(f'{name}/{index}', entry)

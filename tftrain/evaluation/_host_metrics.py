"""Host metrics: computed by NumPy from all examples at once."""

from collections.abc import Mapping
import numbers
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import pipeline as pipeline_lib
from tftrain.evaluation import _per_example
from tftrain.interop import autograph
from tftrain.task import task as task_lib
from tftrain.train import counters as counters_lib


class HostMetrics:
  """Computes `Task.host_metrics` from the outputs of `Task.collect`.

  The data is read a second time, on one device, so the values do not depend on
  the number of replicas. All collected outputs must fit into memory.

  Args:
    task: A built Task.
    pipeline: Data of the evaluation.

  Raises:
    TaskError: If `host_metrics` does not return {name: function}.
  """

  def __init__(self, task: task_lib.Task, pipeline: pipeline_lib.Pipeline):
    self._owner = type(task).__name__
    self._functions = dict(task.host_metrics())
    for name, function in self._functions.items():
      if not isinstance(name, str) or not callable(function):
        raise errors.TaskError(
          f'host_metrics() of {self._owner}: {name!r} is a '
          f'{type(function).__name__}; return {{name: function}}'
        )
    if not self._functions:
      return
    self._outputs = _per_example.Outputs(
      task,
      pipeline,
      lambda batch: autograph.converted(task.collect)(batch),
      f'collect() of {self._owner}',
    )

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(self._functions)

  def read(self, stop: tf.Variable) -> dict[str, float]:
    """Returns name -> value over all data; {} if a stop came first."""
    if not self._functions:
      return {}
    parts: list[Mapping[str, np.ndarray]] = []
    position = 0
    for batch in self._outputs.batches():
      if stop.numpy() == counters_lib.STOP:
        return {}
      arrays, rows = self._outputs(batch, position)
      parts.append(arrays)
      position += rows
    collected = {
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    return {name: self._value(name, collected) for name in self._functions}

  def _value(self, name: str, collected: Mapping[str, np.ndarray]) -> float:
    """Computes one metric.

    Raises:
      TaskError: If its function fails, or does not return one number.
    """
    what = f'host metric {name!r} of {self._owner}'
    try:
      value: Any = self._functions[name](collected)
    except Exception as error:
      shapes = ', '.join(f'{k} {list(v.shape)}' for k, v in collected.items())
      raise errors.TaskError(
        f'{what} cannot take {shapes}: {errors.one_line(error)}'
      ) from error
    array = np.asarray(value)
    if array.ndim or not isinstance(array.item(), numbers.Real):
      raise errors.TaskError(
        f'{what} returned {errors.brief(repr(value), 60)}; return one number'
      )
    return float(value)

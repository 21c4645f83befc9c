"""Per-example outputs of a Task, computed batch by batch for the host."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import pipeline as pipeline_lib
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import transforms
from tftrain.export import signature
from tftrain.interop import autograph
from tftrain.task import task as task_lib
from tftrain.train import retracing


class Outputs:
  """Per-example outputs of a method of a Task, without padding rows.

  The batch is fetched outside of the graph. The host has work between two calls
  anyway, and waiting for a batch there costs a fifth of waiting inside
  (measured).

  Args:
    task: A built Task.
    pipeline: Source of the batches.
    compute: Maps a batch to outputs, by methods of `task`.
    what: Name of the method, for errors.
  """

  def __init__(
    self,
    task: task_lib.Task,
    pipeline: pipeline_lib.Pipeline,
    compute: Callable[[Any], Any],
    what: str,
  ):
    self._pipeline = pipeline
    self._what = what

    def run(batch: Any) -> Any:
      with task.calls():
        made = compute(batch)
      return self._named(made), _count_rows(pipeline, batch)

    self._compiled = tf.function(
      run, autograph=False, input_signature=[pipeline.element_spec]
    )
    # Examples of padded data; rows after these are padding.
    self._total = pipeline.num_examples if pipeline.pads else None

  def batches(self, start_step: int = 0) -> Iterator[Any]:
    with tf.device('CPU:0'):
      elements: Iterator[Any] = iter(self._pipeline.dataset(0, start_step))
    if self._pipeline.has_cursor:
      return (batch for batch, _ in elements)
    return elements

  def count(self, batch: Any) -> int:
    """Returns the number of examples in a batch, padding not among them."""
    return int(_count_rows(self._pipeline, batch))

  def __call__(
    self, batch: Any, position: int
  ) -> tuple[dict[str, np.ndarray], int]:
    """Computes the outputs of a batch that begins at example `position`.

    Returns:
      (name -> array `[rows, ...]`, rows).

    Raises:
      TaskError: If an output has fewer rows than the batch has examples.
    """
    with tf.variable_creator_scope(retracing.refuse_variable):
      made, counted = self._compiled(batch)
    rows = int(counted)
    if self._total is not None:
      rows = min(rows, self._total - position)
    arrays = {name: value.numpy() for name, value in made.items()}
    for name, array in arrays.items():
      if len(array) < rows:
        raise errors.TaskError(
          f'{self._what} returned {name!r} of shape {list(array.shape)} for '
          f'{rows} examples; return a row for each'
        )
    return {name: array[:rows] for name, array in arrays.items()}, rows

  def _named(self, made: Any) -> dict[str, Any]:
    """Returns the outputs by the names that an export gives them."""
    named = signature.named('outputs', made)
    for name, value in named.items():
      if not isinstance(name, str) or not tf.is_tensor(value):
        found = f'a {type(value).__name__}'
      elif isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        found = f'a {type(value).__name__}'
      elif value.shape.rank == 0 or value.dtype.is_complex:
        found = f'{value.dtype.name}{value.shape}'
      else:
        continue
      raise errors.TaskError(
        f'{self._what} returned {name!r} as {found}; return tensors of numbers '
        'or strings, [examples, ...]'
      )
    return named


def served(task: task_lib.Task, pipeline: pipeline_lib.Pipeline) -> Outputs:
  """Returns the Outputs of `task.serve`."""

  def compute(batch: Any) -> Any:
    features = autograph.converted(task.features)(batch)
    return autograph.converted(task.serve)(features)

  return Outputs(task, pipeline, compute, f'serve() of {type(task).__name__}')


def _count_rows(pipeline: pipeline_lib.Pipeline, batch: Any) -> tf.Tensor:
  rows = shuffle_lib.count(batch)
  if not pipeline.pads or pipeline.num_examples is not None:
    return rows  # the host knows the number of examples
  weights = batch['weights'] if isinstance(batch, dict) else batch[2]
  weights = tf.nest.flatten(weights)[0]
  real = tf.reshape(~transforms.is_padding(weights), [rows, -1])
  return tf.math.count_nonzero(tf.reduce_any(real, axis=1), dtype=tf.int32)

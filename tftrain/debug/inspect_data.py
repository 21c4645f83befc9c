"""Data inspection: first examples, and the speed of each input stage."""

from collections.abc import Iterator
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain.data import pipeline as pipeline_lib
from tftrain.experiment import experiment as experiment_lib

_EXAMPLES = 3
_CHARACTERS = 60
_TOGETHER = 256

_ADVICE = {
  'map': 'do it beforehand, cache, or give Examples more threads',
  'filter': 'filter beforehand',
  'batch': 'make its map_batch cheaper, or do it in the model',
}


def inspect(experiment: experiment_lib.Experiment, seconds: float = 1.0) -> str:
  """Describes each dataset of an Experiment: examples and speed of stages.

  Args:
    experiment: Recipe of the run; no Task is made.
    seconds: Time for which each stage is measured.

  Returns:
    The description, several lines.
  """
  parts = []
  for name, pipeline in experiment.all_data():
    parts += [
      f'{name}:',
      *(f'  {line}' for line in pipeline.describe().splitlines()),
      *(f'  {line}' for line in _first_examples(pipeline)),
      *(f'  {line}' for line in _stage_lines(pipeline, seconds)),
    ]
  return '\n'.join(parts)


def _first_examples(pipeline: pipeline_lib.Pipeline) -> Iterator[str]:
  batches = pipeline.peek(1)
  if not batches:
    return
  for row in range(_EXAMPLES):
    yield f'example {row}:'
    for name, leaf in _named_leaves(batches[0]):
      if row < len(leaf):
        yield f'  {name}{_leaf_summary(leaf[row])}'


def _stage_lines(
  pipeline: pipeline_lib.Pipeline, seconds: float
) -> Iterator[str]:
  """Yields a line for each stage."""
  total, own = _stage_times(pipeline, seconds)
  slowest = max(own, key=lambda name: own[name])
  yield f'{"stage":10} {"examples/s":>12} {"us/example":>12} {"its own":>9}'
  for name, time_taken in total.items():
    mark = '  slowest' if name == slowest else ''
    yield (
      f'{name:10} {1 / time_taken:12,.0f} {time_taken * 1e6:12.2f} '
      f'{own[name] * 1e6:9.2f}{mark}'
    )


def slowest_stage(pipeline: pipeline_lib.Pipeline, seconds: float = 0.3) -> str:
  """Names the input stage that takes most of the time, with a remedy.

  Args:
    pipeline: Pipeline to measure.
    seconds: Time for which each stage is measured.
  """
  _, own = _stage_times(pipeline, seconds)
  name = max(own, key=lambda name: own[name])
  advice = _ADVICE.get(name, 'read from memory, or from a faster disk')
  return f'the {name} stage is the slowest: {advice}'


def _stage_times(
  pipeline: pipeline_lib.Pipeline, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
  """Returns (seconds per example up to each stage, share of each stage)."""
  with pipeline_lib.explained(pipeline):
    total = {
      name: _seconds_per_example(dataset, seconds)
      for name, dataset in pipeline.stages(0)
    }
  own, before = {}, 0.0
  for name, time_taken in total.items():
    own[name] = max(0.0, time_taken - before)
    before = max(before, time_taken)
  return total, own


def _seconds_per_example(dataset: tf.data.Dataset, seconds: float) -> float:
  first = tf.nest.flatten(dataset.element_spec)[0]
  if first.shape.rank == 0:  # single examples: do not time Python
    dataset = dataset.ragged_batch(_TOGETHER)
  iterator = iter(dataset)
  begun = time.perf_counter()
  count = _num_rows(next(iterator))
  if time.perf_counter() - begun < seconds:  # excludes filling of buffers
    begun, count = time.perf_counter(), 0
  for element in iterator:
    count += _num_rows(element)
    if time.perf_counter() - begun > seconds:
      break
  return max(time.perf_counter() - begun, 1e-9) / max(count, 1)


def _num_rows(element: Any) -> int:
  first = tf.nest.flatten(element)[0]
  return int(first.shape[0])


def _named_leaves(batch: Any, name: str = '') -> Iterator[tuple[str, Any]]:
  if isinstance(batch, dict):
    for key, part in batch.items():
      yield from _named_leaves(part, f'{name}{key}: ')
  elif isinstance(batch, tuple | list):
    for index, part in enumerate(batch):
      yield from _named_leaves(part, f'{name}{index}: ')
  else:
    yield name, batch


def _leaf_summary(value: Any) -> str:
  array = np.asarray(value)
  kind = 'string' if array.dtype.kind in 'OS' else str(array.dtype)
  sizes = f'[{",".join(map(str, array.shape))}]' if array.ndim else ''
  flat = array.reshape(-1)[:20].tolist()
  text = ' '.join(
    item.decode(errors='replace') if isinstance(item, bytes) else f'{item:g}'
    for item in flat
  )
  text = text.replace('\n', '\\n')
  more = '...' if len(text) > _CHARACTERS or array.size > 20 else ''
  return f'{kind}{sizes} {text[:_CHARACTERS]}{more}'

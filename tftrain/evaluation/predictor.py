"""Prediction: writes the served outputs of each example to a file."""

from collections.abc import Iterator
from collections.abc import Mapping
import itertools
import json
import os
import pathlib
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data import dataset_pipeline
from tftrain.data import pipeline as pipeline_lib
from tftrain.evaluation import _per_example
from tftrain.evaluation import _prediction_files
from tftrain.interop import variables as variables_lib
from tftrain.platform import files
from tftrain.platform import hashing
from tftrain.platform import lock
from tftrain.step import error_messages
from tftrain.task import task as task_lib
from tftrain.train import counters as counters_lib


def predict(
  task: task_lib.Task,
  data: Any,
  output: str | os.PathLike[str],
  *,
  strategy: tf.distribute.Strategy | None = None,
  stop: tf.Variable | None = None,
  origin: Mapping[str, Any] | None = None,
) -> int | None:
  """Writes the outputs of `task.serve` for each example, in order.

  If the Task keeps moving averages (EMA) of its weights, the averages are used.
  Prediction runs on one device, that of the strategy's first replica.

  A `.jsonl` output has a line `{"index": 0, "outputs": [...]}` per example, a
  `.npz` output an array `[examples, ...]` per output. Outputs are named like in
  an export: by their keys, `outputs`, or `outputs_0`, `outputs_1`, ...

  After a kill at any instant, the same call resumes. The file is then equal to
  the bit to that of an uninterrupted call, if `serve` draws no random numbers.
  Partial results are in `<output>.parts`; `<output>.origin.json` describes the
  weights and the data. A complete output is left alone.

  Args:
    task: A built Task, with the weights to use.
    data: A Pipeline for evaluation, or other data that an Evaluator takes.
    output: Path of the file.
    strategy: Strategy under which the Task was made; None means the current
      one, by default one device.
    stop: The variable `trainer.stop_variable`: a stop ends the prediction
      early, and a later call resumes it.
    origin: JSON facts, such as the step of the checkpoint, that must match to
      resume or keep an existing output. The weights and the fingerprint of the
      data are compared in any case.

  Returns:
    The number of examples; None if a stop came first.

  Raises:
    ConfigError: If `output` ends in neither `.jsonl` nor `.npz`.
    InputError: If `data` has no end, changes the order of its examples, omits
      some, or cannot resume.
    RunDirectoryError: If an existing output is of other weights, data or
      origin, or `output` cannot be written.
    TaskError: If `task` is not built, or its outputs cannot be written.
  """
  output = pathlib.Path(output)
  _prediction_files.store_for(output)  # rejects its suffix early
  pipeline = dataset_pipeline.as_pipeline(data, training=False)
  _check_task(task, pipeline)
  strategy = strategy or tf.distribute.get_strategy()
  parts = _parts_of(output)
  with strategy.scope(), task.averaged(), task.seeds_restored():
    made_of = {
      'data': dict(pipeline.fingerprint()),
      'origin': dict(origin or {}),
      'weights': _weights_digest(task),
    }
    files.make_directory(parts, 'output')
    with lock.lock(parts, 'output'):
      return _write_outputs(task, pipeline, output, made_of, stop)


def _write_outputs(
  task: task_lib.Task,
  pipeline: pipeline_lib.Pipeline,
  output: pathlib.Path,
  made_of: Mapping[str, Any],
  stop: tf.Variable | None,
) -> int | None:
  parts = _parts_of(output)
  if output.exists():  # killed before this cleanup
    files.remove_directory(parts)
  note = _OriginFile(output, parts, made_of)
  if output.exists():
    return note.read_count()
  store = _prediction_files.store_for(output)(parts)
  if not _Run(task, pipeline, store).to_end(stop):
    logging.info('%s: stopped after %d examples.', output, store.count)
    return None
  note.write(store.count)  # first: no output may lack its note
  store.finish(output)
  files.remove_directory(parts)
  logging.info('%s: %d examples.', output, store.count)
  return store.count


def _parts_of(output: pathlib.Path) -> pathlib.Path:
  return output.with_name(f'{output.name}.parts')


def _check_task(task: task_lib.Task, pipeline: pipeline_lib.Pipeline) -> None:
  """Raises early for faults that would appear late or stay unnoticed."""
  if not task.is_built:
    raise errors.TaskError(
      f'{type(task).__name__} is not built; make a Trainer or an Evaluator of '
      'it, or restore a checkpoint, before predict()'
    )
  if pipeline.repeats:
    raise errors.InputError(
      'predict: the data never ends; make it with training=False, or leave out '
      '.repeat()'
    )
  if pipeline.rearranges:
    raise errors.InputError(
      'predict: Bucketed and Packed do not keep the order of the examples; '
      'use Padded, or data.over(data.source)'
    )
  rows = _rows_of(pipeline)
  if rows and pipeline.num_steps is not None:
    assert pipeline.num_examples is not None
    lost = pipeline.num_examples - pipeline.num_steps * rows
    if lost > 0:
      raise errors.InputError(
        f"predict: the last {lost} examples are left out; give remainder='keep'"
        " or 'pad'"
      )
  pipeline.check_resumable()


def _rows_of(pipeline: pipeline_lib.Pipeline) -> int | None:
  """Returns the examples per batch; None if they vary or are unknown."""
  if pipeline.has_cursor or pipeline.keeps_iterator:
    return None
  if pipeline.num_examples is None or pipeline.steps_per_epoch is None:
    return None
  return round(pipeline.num_examples / pipeline.steps_per_epoch)


def _weights_digest(task: task_lib.Task) -> str:
  return hashing.arrays_digest(
    (str(index), variables_lib.raw(variable).read_value().numpy())
    for index, variable in enumerate(task.all_variables())
  )


class _OriginFile:
  """The file beside an output that describes its weights and data.

  Raises:
    RunDirectoryError: If existing rows were made of other weights or data.
  """

  def __init__(
    self, output: pathlib.Path, parts: pathlib.Path, made_of: Mapping[str, Any]
  ):
    self._output = output
    self._path = output.with_name(f'{output.name}.origin.json')
    # Through JSON, because tuples become lists in the file.
    self._made_of = json.loads(json.dumps(made_of, default=str))
    begun = output if output.exists() else parts
    if output.exists() or _prediction_files.is_begun(parts):
      self._compare(begun)
    else:
      with files.convert_os_errors(self._path):
        files.write_json(self._path, self._made_of)

  def _compare(self, begun: pathlib.Path) -> None:
    try:
      found = json.loads(self._path.read_text(encoding='utf-8'))
      if begun == self._output and 'examples' not in found:
        raise ValueError
    except (OSError, ValueError):
      raise errors.RunDirectoryError(
        f'{begun} exists, and no {self._path.name} says what it was made of; '
        'remove it, or name another output'
      ) from None
    other = [
      key for key in self._made_of if found.get(key) != self._made_of[key]
    ]
    if other:
      raise errors.RunDirectoryError(
        f'{begun} was made of {_what_differs(other[0], found, self._made_of)}; '
        'remove it, or name another output'
      )

  def read_count(self) -> int:
    count = int(json.loads(self._path.read_text(encoding='utf-8'))['examples'])
    logging.info(
      '%s is there, with all its %d examples, and left alone.',
      self._output,
      count,
    )
    return count

  def write(self, count: int) -> None:
    with files.convert_os_errors(self._path):
      files.write_json(self._path, {**self._made_of, 'examples': count})


def _what_differs(
  key: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str:
  """Returns the first difference, in words."""
  if key == 'weights':
    return 'other weights'
  before, now = found.get(key) or {}, wanted[key]
  for name in sorted({*before, *now}):
    if before.get(name) != now.get(name):
      one, two = (errors.brief(repr(x.get(name)), 60) for x in (before, now))
      return f'other {key}: {name} is {two} now, it was {one}'
  return f'other {key}'


class _Run:
  """Computes and writes one batch after the other.

  A writer thread gained nothing: it competes for the interpreter lock.
  """

  def __init__(
    self,
    task: task_lib.Task,
    pipeline: pipeline_lib.Pipeline,
    store: _prediction_files.Store,
  ):
    self._task = task
    self._pipeline = pipeline
    self._store = store
    self._outputs = _per_example.served(task, pipeline)
    self._batch = 0

  def to_end(self, stop: tf.Variable | None) -> bool:
    """Runs to the end of the data; returns False if a stop came first."""
    with (
      error_messages.explained(self._what_failed),
      pipeline_lib.explained(self._pipeline),
    ):
      batches, position = self._start()
      try:
        for batch in batches:
          if stop is not None and stop.numpy() == counters_lib.STOP:
            return False
          arrays, rows = self._outputs(batch, position)
          skipped = max(0, self._store.count - position)
          if skipped < rows:  # earlier rows are written
            self._store.add({n: a[skipped:] for n, a in arrays.items()})
          position += rows
          self._batch += 1
      finally:
        self._store.flush()
    return True

  def _start(self) -> tuple[Iterator[Any], int]:
    """Returns (batches not yet written, first example of these)."""
    done, rows = self._store.count, _rows_of(self._pipeline)
    if done:
      logging.info('Going on after %d examples.', done)
    if rows:
      self._batch = done // rows
      return self._outputs.batches(self._batch), self._batch * rows
    position = 0
    if done:  # rows per batch vary: count again
      for batch in self._outputs.batches():
        rows = self._outputs.count(batch)
        if position + rows > done:
          break
        position += rows
        self._batch += 1
    left = itertools.islice(self._outputs.batches(), self._batch, None)
    return left, position

  def _what_failed(self) -> str:
    return (
      f'predict, batch {self._batch}: serve() of {type(self._task).__name__} '
      'cannot take it'
    )

"""Tuning: finds the settings with which a run is fastest on this machine."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import gc
import os
import pathlib
import statistics
import time
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.data import dataset_pipeline
from tftrain.data import pipeline as pipeline_lib
from tftrain.experiment import experiment as experiment_lib
from tftrain.platform import files
from tftrain.platform import process_memory
from tftrain.step import update_options
from tftrain.train import trainer as trainer_lib

_JIT = 'Update.jit'
_LOOP = 'Experiment.steps_per_loop'
_BUCKET = 'Experiment.bucket_mb'
_ROUNDS = 3
_WINDOWS = 75  # of a search: about 15 candidates, with what warms them up
_BUFFERED = 16  # batches may be made together, or between two turns
_WORTH = 0.03  # the share of a step's time that a setting must save


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What was measured with some settings.

  Attributes:
    settings: Parameter, as gin names it -> value; {} is the run as configured.
    step_seconds: Median time of a step; None if it failed.
    batch_size: Rows of a global batch; None if it varies.
    compile_seconds: Time to trace and compile.
    memory_mb: Memory that the process gained.
    note: What XLA compiles, and why; or the reason of the failure.
  """

  settings: Mapping[str, Any]
  step_seconds: float | None
  batch_size: int | None = None
  compile_seconds: float = 0.0
  memory_mb: float = 0.0
  note: str = ''

  @property
  def name(self) -> str:
    """The settings as text."""
    given = [f'{name} = {value!r}' for name, value in self.settings.items()]
    return ', '.join(given) or 'as configured'

  @property
  def examples_per_second(self) -> float | None:
    if self.step_seconds is None or self.batch_size is None:
      return None
    return self.batch_size / self.step_seconds


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Result of a tuning.

  Attributes:
    candidates: All that was measured; the first is the run as configured.
    best: The fastest settings; {} if none is worth a change.
    batch_sizes: What was measured with other batch sizes, which change the
      training and are not among `best`.
    own_update: Whether the Experiment has an Update of its own.
  """

  candidates: Sequence[Candidate]
  best: Mapping[str, Any]
  batch_sizes: Sequence[Candidate] = ()
  own_update: bool = False

  def table(self) -> str:
    """Returns a line for each candidate, and the best settings, as text."""
    rows = [*self.candidates, *self.batch_sizes]
    width = max(len(row.name) for row in rows)
    lines = [
      f'{"settings":{width}} {"us/step":>9} {"examples/s":>11} '
      f'{"compile s":>10} {"MB":>6} {"pays off at":>12}'
    ]
    lines += [self._line(row, width) for row in rows]
    settings = [f'{name} = {value!r}' for name, value in self.best.items()]
    return '\n'.join([*lines, f'Best: {", ".join(settings) or rows[0].name}'])

  def gin(self) -> str:
    """Returns the best settings as a gin file."""
    lines = ['# Made by --mode=tune; give this file as the last --gin_file.']
    if _JIT in self.best and not self.own_update:
      lines.append('Experiment.update = @Update()')
    lines += [f'{name} = {value!r}' for name, value in self.best.items()]
    for row in self.batch_sizes:
      if row.examples_per_second is not None:
        name, value = list(row.settings.items())[-1]
        rate = f'{row.examples_per_second:,.0f} examples/s'
        lines.append(f'# {name} = {value!r}  # {rate}, but another training')
    return '\n'.join(lines) + '\n'

  def _line(self, row: Candidate, width: int) -> str:
    if row.step_seconds is None:
      return f'{row.name:{width}} {row.note}'
    rate = row.examples_per_second
    return (
      f'{row.name:{width}} {row.step_seconds * 1e6:9,.0f} '
      f'{"" if rate is None else f"{rate:,.0f}":>11} '
      f'{row.compile_seconds:10.1f} {row.memory_mb:6,.0f} '
      f'{self._pays_off(row):>12}  {row.note}'
    )

  def _pays_off(self, row: Candidate) -> str:
    """Returns the step from which a longer compilation has paid off."""
    base = self.candidates[0]
    assert row.step_seconds is not None and base.step_seconds is not None
    longer = row.compile_seconds - base.compile_seconds
    saved = base.step_seconds - row.step_seconds
    return f'step {longer / saved:,.0f}' if longer > 0 and saved > 0 else ''


def tune(
  experiment: experiment_lib.Experiment,
  *,
  seconds: float = 60.0,
  batch_sizes: Sequence[int] = (),
) -> Tuning:
  """Measures settings that change only the speed, and leaves nothing behind.

  One setting after another is varied: `jit`, the steps of a call, the megabytes
  of an all-reduce, and the prefetching and threads of the data. Its values are
  timed in turns with the best settings so far.

  Args:
    experiment: Recipe of the run.
    seconds: About the time to take, compilations not counted.
    batch_sizes: Global batch sizes to measure, too; they change the training.

  Raises:
    ConfigError: If the data take no batch size, and `batch_sizes` is given.
  """
  data = dataset_pipeline.as_pipeline(experiment.train_data, training=True)
  if batch_sizes and 'batch_size' not in data.options():
    raise errors.ConfigError(
      f'tune: {type(data).__name__} takes no batch size; leave out batch_sizes'
    )
  search = _Search(experiment, seconds / _WINDOWS)
  search.vary(_JIT, ['off', 'block'])
  if search.best.jit == 'off':  # blocks in XLA have a length of their own
    search.vary(_LOOP, [20, 500])
  if search.best.replicas > 1 and experiment.bucket_mb is None:
    search.vary(_BUCKET, [1.0, 8.0, 32.0])
  for name, values in _of_data(data):
    search.vary(name, values)
  best = search.best.settings
  if batch_sizes:
    search.vary(f'{type(data).__name__}.batch_size', batch_sizes, keep=False)
  count = len(search.candidates) - len(batch_sizes)
  return Tuning(
    candidates=search.candidates[:count],
    best=best,
    batch_sizes=search.candidates[count:],
    own_update=experiment.update != update_options.Update(),
  )


def check_output(path: str) -> None:
  """Raises ConfigError if `path` is no name of a gin file."""
  if not path.endswith('.gin'):
    raise errors.ConfigError(f'--output={path}: give a name that ends in .gin')


def write(found: Tuning, path: str) -> None:
  """Writes the best settings as a gin file."""
  target = pathlib.Path(path)
  with files.convert_os_errors(target):
    files.write_text(target, found.gin())


def _of_data(
  data: pipeline_lib.Pipeline,
) -> Iterator[tuple[str, Sequence[Any]]]:
  """Yields (setting, values) of the options of the data."""
  tried = {'prefetch': (1, 8), 'threads': (1, os.cpu_count() or 1)}
  for option in data.options():
    if option in tried:
      yield f'{type(data).__name__}.{option}', tried[option]


class _Search:
  """A search of one setting after the other.

  Args:
    experiment: Recipe of the run.
    window: Seconds for which each candidate is timed at once.

  Attributes:
    best: The fastest run so far.
    candidates: All that was measured.
  """

  def __init__(self, experiment: experiment_lib.Experiment, window: float):
    self._experiment = experiment
    self._window = window
    self.best = _TimedRun(experiment, {}, window)
    self.candidates: list[Candidate] = []

  def vary(
    self, name: str, values: Sequence[Any], *, keep: bool = True
  ) -> None:
    """Measures values of a setting, beside the best settings so far.

    Args:
      name: The setting.
      values: Its values.
      keep: Whether the fastest value is kept for the settings that follow.
    """
    others, failed = [], []
    for value in values:
      settings = {**self.best.settings, name: value}
      try:
        others.append(_TimedRun(self._experiment, settings, self._window))
      except errors.Error as error:
        reason = errors.one_line(error)
        failed.append(Candidate(settings, None, note=reason))
    for _ in range(_ROUNDS):
      for run in (self.best, *others):
        run.take_turn()
    if not self.candidates:
      self.candidates.append(self.best.result())
    self.candidates += [*(run.result() for run in others), *failed]
    fastest = min((self.best, *others), key=lambda run: run.last_seconds)
    saved = 1 - fastest.last_seconds / self.best.last_seconds
    if keep and saved > _WORTH:
      self.best = fastest
    gc.collect()  # the Trainers that lost


class _TimedRun:
  """A Trainer of its own, whose steps are timed.

  Args:
    experiment: Recipe of the run.
    settings: What to change.
    window: Seconds for which it is timed at once.

  Attributes:
    settings: What was changed.
    jit: What XLA compiles.
    replicas: Number of replicas.
  """

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    settings: Mapping[str, Any],
    window: float,
  ):
    self.settings = dict(settings)
    held = process_memory.resident()
    with files.scratch_directory() as directory:
      run = _changed(experiment, settings).prepare(
        directory / 'run', evaluate=False, quiet=True
      )
    self._trainer: trainer_lib.Trainer = run.trainer
    self._trainer.prepare()
    self.jit = self._trainer.jit.jit
    self.replicas = self._trainer.strategy.num_replicas_in_sync
    self._start: Mapping[str, Any] | None = None
    if not self._trainer.pipeline.repeats:  # begun anew in each turn
      state = self._trainer.read_state()
      self._start = {name: value.numpy() for name, value in state.items()}
    self._steps = self._fitting(window)
    self._memory = max(process_memory.resident() - held, 0.0) / 1e6
    self._times: list[float] = []

  @property
  def last_seconds(self) -> float:
    """Median time of a step in the last rounds."""
    return statistics.median(self._times[-_ROUNDS:])

  def take_turn(self) -> None:
    self._train(min(self._steps, _BUFFERED))
    seconds, steps = self._train(self._steps)
    self._times.append(seconds / steps)

  def result(self) -> Candidate:
    return Candidate(
      self.settings,
      statistics.median(self._times),
      batch_size=self._trainer.pipeline.batch_size,
      compile_seconds=self._trainer.loop.compile_seconds or 0.0,
      memory_mb=self._memory,
      note=str(self._trainer.jit),
    )

  def _fitting(self, window: float) -> int:
    """Warms up; returns how many steps take `window` seconds."""
    asked = 1
    while True:
      seconds, steps = self._train(asked)
      is_slow = seconds >= 8 * window
      if (
        is_slow
        or steps < asked
        or (asked >= _BUFFERED and seconds >= window / 2)
      ):
        least = 1 if is_slow else min(steps, _BUFFERED)
        return max(least, min(steps, round(steps * window / seconds)))
      asked *= 2

  def _train(self, steps: int) -> tuple[float, int]:
    """Trains; returns (seconds, steps), fewer at the end of the data."""
    trainer = self._trainer
    if self._start is not None:
      trainer.write_state({k: tf.constant(v) for k, v in self._start.items()})
    before, begun = trainer.step, time.perf_counter()
    trainer.train(before + steps)
    return time.perf_counter() - begun, max(trainer.step - before, 1)


def _changed(
  experiment: experiment_lib.Experiment, settings: Mapping[str, Any]
) -> experiment_lib.Experiment:
  """Returns the Experiment with other settings, and only what a step needs."""
  fields: dict[str, Any] = {}
  options: dict[str, Any] = {}
  for name, value in settings.items():
    owner, _, field = name.partition('.')
    if name == _JIT:
      fields['update'] = dataclasses.replace(experiment.update, jit=value)
    elif owner == 'Experiment':
      fields[field] = value
    else:
      options[field] = value
  if options:

    def make_data() -> pipeline_lib.Pipeline:
      given = experiment.train_data
      data = dataset_pipeline.as_pipeline(given, training=True)
      return data.with_options(**options)

    fields['train_data'] = make_data
  return dataclasses.replace(
    experiment, export=False, early_stop=None, best=None, actions=(), **fields
  )

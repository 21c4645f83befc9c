"""Dry run: tries every part of a run once, and leaves nothing behind."""

from collections.abc import Iterator
import time

import numpy as np

from tftrain import errors
from tftrain.data import pipeline as pipeline_lib
from tftrain.experiment import experiment as experiment_lib
from tftrain.experiment import run as run_lib
from tftrain.platform import files
from tftrain.platform import hashing
from tftrain.platform import lock
from tftrain.platform import process_memory
from tftrain.train import metrics

_SECONDS = 3.0


def check(experiment: experiment_lib.Experiment) -> Iterator[str]:
  """Tries each part of a run, in a directory that is removed afterwards.

  Args:
    experiment: Recipe of the run.

  Yields:
    A line for each part that works, with its figures.

  Raises:
    Error: If a part fails; the parts after it are not tried.
  """
  with files.scratch_directory() as directory:
    model_dir = directory / 'run'
    run = experiment.prepare(model_dir, quiet=True)
    yield from _run_lines(run)
    yield from _stepped(run)
    with lock.lock(model_dir):
      yield from _saved(run)
      yield from _timed(run)
      if experiment.export:
        yield from _exported(run)
    yield _format_line(
      'memory', f'{process_memory.most_resident() / 1e6:,.0f} MB at most'
    )


def _run_lines(run: run_lib.Run) -> Iterator[str]:
  """Yields lines on the data, the model and the metrics."""
  trainer = run.trainer
  batch = pipeline_lib.described(trainer.example_batch)
  yield _format_line('data', f'a batch is {batch}')
  count = sum(
    int(np.prod(v.shape)) for v in trainer.task.all_variables() if v.trainable
  )
  replicas = trainer.strategy.num_replicas_in_sync
  many = '' if replicas == 1 else f', {replicas} replicas'
  yield _format_line('model', f'{count:,} trainable parameters{many}')
  names = metrics.full_names(trainer.tags, run.evaluators)
  yield _format_line('metrics', ', '.join(names))


def _stepped(run: run_lib.Run) -> Iterator[str]:
  files.make_directory(run.model_dir)
  report = run.trainer.train(1)
  assert report is not None  # a run has a first step
  loss = report.scalars.get('loss', float('nan'))
  flops = run.trainer.flops_per_example
  yield _format_line(
    'step',
    f'loss {loss:.4g}, {flops / 1e6:,.4g} MFLOPs an example, compiled in '
    f'{run.trainer.loop.compile_seconds:.1f} s',
  )
  for evaluator in run.evaluators:
    begun = time.perf_counter()
    scalars = evaluator.evaluate() or {}
    shown = ', '.join(f'{k} {v:.4g}' for k, v in scalars.items())
    seconds = time.perf_counter() - begun
    yield _format_line(
      'evaluation', f'{evaluator.name}: {shown}; {seconds:.1f} s'
    )


def _saved(run: run_lib.Run) -> Iterator[str]:
  """Saves and restores a checkpoint, and compares the states to the bit."""
  trainer, checkpointer = run.trainer, run.checkpointer
  before = {k: v.numpy() for k, v in trainer.read_state().items()}
  begun = time.perf_counter()
  checkpointer.save()
  checkpointer.wait(last=True)
  seconds = time.perf_counter() - begun
  if not checkpointer.restore_step(trainer.step):
    raise errors.CheckpointError(
      f'{checkpointer.directory}: what was just saved is not there'
    )
  after = {k: v.numpy() for k, v in trainer.read_state().items()}
  for name, value in before.items():
    if hashing.array_digest(value) != hashing.array_digest(after[name]):
      raise errors.CheckpointError(
        f'{name} is not what it was, once saved and restored; keep it in a '
        'variable that is an attribute of the Task'
      )
  size = sum(value.nbytes for value in before.values())
  yield _format_line(
    'checkpoint', f'{size / 1e6:,.1f} MB in {seconds:.1f} s, equal to the bit'
  )


def _timed(run: run_lib.Run) -> Iterator[str]:
  """Times some seconds of steps, and extrapolates to the whole run."""
  trainer = run.trainer
  begun, first = time.perf_counter(), trainer.step
  seconds = 0.0
  while trainer.step < run.last_step and seconds < _SECONDS:
    trainer.train(min(2 * trainer.step, run.last_step))
    seconds = time.perf_counter() - begun
  rate = (trainer.step - first) / max(seconds, 1e-9)
  if not rate:
    yield _format_line('speed', 'the run has one step')
    return
  left = _hours_and_minutes(run.last_step / rate)
  yield _format_line(
    'speed', f'{rate:,.4g} steps/s, so {left} for {run.last_step:,}'
  )


def _exported(run: run_lib.Run) -> Iterator[str]:
  path = run.export('latest')
  size = sum(f.stat().st_size for f in path.rglob('*') if f.is_file())
  yield _format_line(
    'export', f'{size / 1e6:,.1f} MB, another process computes the same'
  )


def _format_line(name: str, text: str) -> str:
  return f'{name:<11} {text}'


def _hours_and_minutes(seconds: float) -> str:
  hours, rest = divmod(round(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'

"""Replay: repeats one step of a run and diagnoses it."""

from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.checkpoint import format
from tftrain.experiment import crash_dump
from tftrain.experiment import run as run_lib
from tftrain.interop import check_numerics
from tftrain.interop import patching
from tftrain.platform import hashing
from tftrain.train import inner_loop
from tftrain.train import trainer as trainer_lib


def replay(run: run_lib.Run, step: int) -> str:
  """Repeats a step, to the bit, and diagnoses it.

  The replay starts from `crash/step-N` if the run failed at that step, else
  from the nearest earlier checkpoint or from the beginning. It writes nothing.

  Args:
    run: A prepared Run.
    step: Number of the step, from 1.

  Returns:
    The diagnosis, several lines.

  Raises:
    CheckpointError: If no earlier checkpoint is left, and the Trainer is not at
      the beginning.
    ConfigError: If `step` is not a step of the run.
  """
  if step < 1 or step > run.last_step:
    raise errors.ConfigError(
      f'--step={step}: the steps of this run are 1 to {run.last_step}'
    )
  trainer = run.trainer
  start, batch = _restore(run, step)
  trainer.prepare()  # settles jit
  if batch is None:
    return f'step {step}: the data ends before it'
  before = trainer.read_state()
  in_xla = trainer.jit.jit == 'block'
  finite, loss, norm, gradients = _take(trainer, batch, in_xla=in_xla)
  after = trainer.task.read_state()
  lines = [
    f'step {step}, from {start}: loss {loss:g}, gradient norm {norm:g}',
    *_comparison_lines(run, step, after),
  ]
  if not finite:
    trainer.write_state({k: v.numpy() for k, v in before.items()})
    lines += _causes(trainer, batch, gradients)
  return '\n'.join([*lines, f'state after it: sha256 {_state_digest(after)}'])


def _restore(run: run_lib.Run, step: int) -> tuple[str, Any]:
  """Restores the state before `step`; returns (its source, batch or None)."""
  trainer = run.trainer
  path = crash_dump.path_of(run.model_dir, step)
  if path.exists():
    batch = crash_dump.restore(run.model_dir, step, trainer)
    if batch is not None:
      return str(path.relative_to(run.model_dir)), batch
  start = 'the beginning'
  earlier = [at for at in run.checkpointer.steps() if at < step]
  if earlier and run.checkpointer.restore_step(earlier[-1]):
    start = f'the checkpoint of step {earlier[-1]}'
  elif trainer.step:
    raise errors.CheckpointError(
      f'no checkpoint before step {step} is left, and the weights are those of '
      f'step {trainer.step}; start --mode=replay anew'
    )
  if trainer.step < step - 1:
    trainer.train(step - 1)
  return start, trainer.next_batch()


def _take(
  trainer: trainer_lib.Trainer, batch: Any, *, in_xla: bool = False
) -> tuple[bool, float, float, dict[str, Any]]:
  """Takes a step; returns (is finite, loss, gradient norm, name -> finite)."""
  with trainer.strategy.scope():
    trainer.task.step_runner.refresh()
    run = inner_loop.single_step(trainer.task, in_xla=in_xla)
    finite, loss, norm, gradients = run(batch)
  return bool(finite), float(loss), float(norm), gradients


def _causes(
  trainer: trainer_lib.Trainer, batch: Any, gradients: dict[str, Any]
) -> Iterator[str]:
  """Yields lines on non-finite values in the batch, weights and step."""
  leaves = tf.nest.flatten(batch, expand_composites=True)
  named = ((f'batch leaf {i}', leaf.numpy()) for i, leaf in enumerate(leaves))
  yield from check_numerics.nonfinite_arrays(named)
  state = trainer.task.read_state()
  yield from check_numerics.nonfinite_arrays(
    (k, v.numpy()) for k, v in state.items()
  )
  engine = trainer.task.step_runner
  plain = dataclasses.replace(engine.options, jit='off')  # XLA has no checks
  try:
    with (
      check_numerics.checked(),
      patching.overridden([(engine, 'options', plain)]),
    ):
      _take(trainer, batch)
    yield 'no operation makes it when each is looked at'
  except tf.errors.InvalidArgumentError as error:
    operation = check_numerics.describe_error(error) or error
    yield f'first bad operation: {operation}'
  bad = check_numerics.bad_gradients(gradients)
  if bad:
    yield f'gradients that are not finite: {", ".join(bad)}'


def _comparison_lines(run: run_lib.Run, step: int, after: Any) -> Iterator[str]:
  """Yields a line on equality with the checkpoint of the same step."""
  path = format.checkpoint_path(run.checkpointer.directory, step)
  if not path.exists():
    return
  values = _values(path)
  other = [
    name
    for name, value in after.items()
    if name in values and hashing.array_digest(value.numpy()) != values[name]
  ]
  if other:
    yield f'differs from the checkpoint of step {step}: {other[0]}'
  else:
    yield f'equal to the checkpoint of step {step}, to the bit'


def _values(path: pathlib.Path) -> dict[str, str]:
  values = format.read_manifest(path)['values']
  return {name: facts['sha256'] for name, facts in values.items()}


def _state_digest(state: dict[str, tf.Tensor]) -> str:
  return hashing.arrays_digest(
    (name, value.numpy()) for name, value in sorted(state.items())
  )

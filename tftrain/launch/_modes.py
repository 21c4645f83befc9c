"""Modes of the command line: the work and the output of each."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
import sys
from typing import Any

from tftrain import errors
from tftrain.launch import _rerun
from tftrain.platform import goodput


@dataclasses.dataclass
class Job:
  """The work of one call of the command.

  Attributes:
    experiment: The Experiment, as configured by the gin files and flags.
    run: The run, prepared on its model_dir; nothing is written yet.
    texts: Function that returns the texts to save: file name -> text.
    bindings: Bindings from the command line.
    result: Result of the training; None before it.
  """

  experiment: Any
  run: Any
  texts: Callable[[], Mapping[str, str]]
  bindings: Sequence[str] = ()
  result: Any = None

  @property
  def model_dir(self) -> pathlib.Path:
    return pathlib.Path(self.run.model_dir)

  def train(self) -> Any:
    """Trains to the end, or until a signal.

    Returns:
      The `tftrain.experiment.Result`.
    """
    self.result = self.run.train(self.texts(), self.bindings)
    return self.result

  def exit_code(self, preempted: int | None = None) -> int:
    """Returns the exit code; it is not 0 if a signal ended the training.

    Args:
      preempted: Exit code after a signal; None takes the signal's own.
    """
    code = int(self.result.exit_code) if self.result else 0
    return _stopped(code, preempted) if code else 0


def first_line(error: errors.Error) -> str:
  """Returns the first line of an error; gin adds lines about its calls."""
  return str(error).splitlines()[0]


def train(job: Job, heavy: Any) -> None:
  result = job.train()
  if not job.run.trainer.workers.leads:
    return
  if result.already_done:
    print(
      f'Already at step {result.step:,} of {result.last_step:,}; nothing to do.'
    )
  elif result.exit_code:
    print(
      f'Stopped at step {result.step:,} of {result.last_step:,}; the same '
      'command resumes it.'
    )
    return
  else:
    print(f'Done: step {result.step:,} of {result.last_step:,}.')
  _print_scalars(result.scalars)
  print(f'Checkpoints  {job.run.checkpointer.directory}')
  hint = ''
  if goodput.waits_for_input(result.seconds):
    hint = str(heavy.inspections.slowest_stage(job.run.trainer.pipeline))
  print(goodput.table(result.seconds, hint))
  export = job.model_dir / 'export'
  if export.is_dir():
    print(f'Export       {export / str(result.step)}')
  print(f'Next:        tensorboard --logdir {job.model_dir}')


def rerun(job: Job, old: str, main: Callable[[Job], int | None]) -> int | None:
  for line in _rerun.warnings(old, job.run.attempt()):
    print(f'warning: {line}', file=sys.stderr, flush=True)
  code = main(job)
  if not code and not job.exit_code():
    print(_rerun.verdict(old, str(job.model_dir)))
  return code


def check(experiment: Any, heavy: Any) -> int:
  """Prints a line for each check; leaves no files."""
  try:
    for line in heavy.preflights.check(experiment):
      print(line, flush=True)
    heavy.config.check_used()
  except errors.Error as error:
    print(f'FAILED      {first_line(error)}')
    return 1
  print('config      all of it is used')
  return 0


def lr_find(experiment: Any, output: str | None, heavy: Any) -> int:
  if output:
    heavy.rangetests.check_output(output)
  found = heavy.rangetests.of_experiment(experiment)
  print(found.table())
  if output:
    heavy.rangetests.write(found, output)
    print(f'Written to {output}')
  return 0


def tune(
  experiment: Any,
  output: str,
  seconds: float,
  batch_sizes: Sequence[str],
  heavy: Any,
) -> int:
  heavy.tunings.check_output(output)
  if not all(size.isdigit() and int(size) for size in batch_sizes):
    raise errors.ConfigError(
      f'--tune_batch_sizes={",".join(batch_sizes)}: give whole numbers, such '
      'as 32,64'
    )
  found = heavy.tunings.tune(
    experiment, seconds=seconds, batch_sizes=[*map(int, batch_sizes)]
  )
  print(found.table())
  heavy.tunings.write(found, output)
  print(f'Written to {output}')
  return 0


def follow(follower: Any, preempted: int | None) -> int:
  steps, exit_code = follower.follow()
  count = f'{len(steps)} checkpoint{"" if len(steps) == 1 else "s"}'
  if exit_code:
    print(f'Stopped; evaluated {count}. The same command goes on.')
    return _stopped(int(exit_code), preempted)
  print(f'Done: evaluated {count}; the run has finished.')
  return 0


def evaluate(job: Job, checkpoint: str) -> int:
  result = job.run.evaluate(checkpoint)
  print(f'Evaluated the checkpoint of step {result.step:,}.')
  _print_scalars(result.scalars)
  return 0


def export(job: Job, checkpoint: str) -> int:
  print(f'Exported to {job.run.export(checkpoint)}')
  return 0


def predict(job: Job, given: str, output: str, checkpoint: str) -> int | None:
  result = job.run.predict(given, output, checkpoint)
  if result.exit_code:
    job.result = result
    print('Stopped; the same command goes on.')
    return None
  print(
    f'Predicted {result.examples:,} examples with the checkpoint of step '
    f'{result.step:,}: {output}'
  )
  return 0


def replay(job: Job, step: int, heavy: Any) -> int:
  print(heavy.replays.replay(job.run, step))
  return 0


def _stopped(code: int, wanted: int | None) -> int:
  return code if wanted is None else int(wanted)


def _print_scalars(scalars: Mapping[str, float]) -> None:
  for name, value in scalars.items():
    if name.startswith('eval/'):
      print(f'{name:<24} {value:.4f}')

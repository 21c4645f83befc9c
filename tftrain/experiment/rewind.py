"""Rewind: restores an earlier checkpoint and skips the faulty batches."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

from absl import logging

from tftrain import errors
from tftrain.checkpoint import checkpointer as checkpointer_lib
from tftrain.report import action as action_lib
from tftrain.train import trainer as trainer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewind:
  """Policy for a loss or gradient that is not finite, or a loss spike.

  The run rewinds to a checkpoint before the last `skip_batches` steps and skips
  their batches, which are read and not used (Chowdhery et al. 2022, "PaLM",
  section 5.1). The result depends neither on the step of that checkpoint nor on
  kills meanwhile.

  Attributes:
    skip_batches: Number of batches to skip, the faulty step's being the last.
    max_rewinds: Most rewinds of a run, over all attempts.

  Raises:
    ConfigError: If a number is not a whole number of at least 1.
  """

  skip_batches: int = 100
  max_rewinds: int = 3

  def __post_init__(self) -> None:
    for name in ('skip_batches', 'max_rewinds'):
      errors.check_count(f'Rewind.{name}', getattr(self, name))


def train(
  trainer: trainer_lib.Trainer,
  checkpointer: checkpointer_lib.Checkpointer,
  rewind: Rewind,
  begin: Callable[[int], None],
  last_step: int,
  actions: Sequence[action_lib.ActionLike],
) -> None:
  """Trains to `last_step`, with rewinds as needed.

  Args:
    trainer: The Trainer.
    checkpointer: Its Checkpointer, which keeps a checkpoint far enough behind.
    rewind: The policy.
    begin: Called after a rewind with the step from which the run resumes.
    last_step: Last step of the run.
    actions: Actions that receive the Reports.

  Raises:
    NonFiniteError: If `rewind.max_rewinds` is exceeded, or no finite checkpoint
      is early enough.
  """
  if trainer.step == 0:
    checkpointer.save()  # a rewind needs a checkpoint
  while True:
    try:
      trainer.train(last_step, actions)
      return
    except errors.NonFiniteError as error:
      checkpointer.wait()
      step = _go_back(trainer, checkpointer, rewind, error)
    begin(step)


def _go_back(
  trainer: trainer_lib.Trainer,
  checkpointer: checkpointer_lib.Checkpointer,
  rewind: Rewind,
  error: errors.NonFiniteError,
) -> int:
  """Rewinds; returns the step from which the run resumes."""
  before = trainer.skipped_steps.parts
  if len(before) >= rewind.max_rewinds:
    raise type(error)(
      f'{error}; the run went back {len(before)} times already '
      '(Rewind.max_rewinds)', step=error.step
    ) from error  # fmt: skip
  last_good = max(error.step - rewind.skip_batches, 0)
  step = checkpointer.go_back(last_good)
  if step is None:
    raise type(error)(
      f'{error}; there is no finite checkpoint at or before step {last_good} '
      'to go back to', step=error.step
    ) from error  # fmt: skip
  # Earlier skips stay, even if they are not in the restored checkpoint.
  trainer.skipped_steps.parts = before
  trainer.skipped_steps.add(last_good + 1, error.step)
  logging.warning(
    '%s. Going back to step %d and passing over steps %d to %d (%d of %d)',
    error,
    step,
    last_good + 1,
    error.step,
    len(before) + 1,
    rewind.max_rewinds,
  )
  return step

"""Rewind: goes back before the steps that went wrong, and passes over them."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

from absl import logging

from tftrain import errors
from tftrain.checkpoint import checkpointer as checkpointer_lib
from tftrain.report import report as report_lib
from tftrain.train import trainer as trainer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewind:
  """What to do when a loss or gradient is not finite, or the loss spikes.

  The run is taken back to before the last `skip_batches` steps, and goes on behind
  them; their batches are taken from the data and not used (Chowdhery et al.
  2022, "PaLM", section 5.1). What comes out does not depend on which checkpoint
  was gone back to, nor on being killed meanwhile.

  Attributes:
    skip_batches: How many steps, the bad one the last of them.
    max_rewinds: How often in the life of a run.

  Raises:
    ConfigError: A number below 1.
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
  actions: Sequence[report_lib.Action],
) -> None:
  """Trains to `last_step`, going back where it must.

  Args:
    trainer: The Trainer.
    checkpointer: Its Checkpointer; it keeps one far enough behind.
    rewind: How far and how often.
    begin: Called with the step from which the run goes on.
    last_step: Where the run ends.
    actions: Who receives the Reports.

  Raises:
    NonFiniteError: It went wrong too often, or there is nothing to go back to.
  """
  if trainer.step == 0:
    checkpointer.save()  # so that there is always something to go back to
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
  """Returns the step from which the run goes on."""
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
  # What was passed over before stays so, whatever that checkpoint says.
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

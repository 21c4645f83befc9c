"""The HPARAMS tab: which values a run was given, beside what came of them."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from tensorboard.plugins.hparams import summary_v2
import tensorflow as tf

from tftrain.platform import literals
from tftrain.task import task as task_lib


@dataclasses.dataclass(frozen=True)
class HParams:
  """A row of the table, as an artifact.

  Attributes:
    values: Name -> value.
    name: Of the trial: TensorBoard adds up rows of the same name.
  """

  values: Mapping[str, literals.Value]
  name: str

  def fault(self) -> str | None:
    return None

  def write(self, tag: str) -> None:
    del tag  # the tab has one of its own
    row = summary_v2.hparams_pb(dict(self.values), trial_id=self.name)
    tf.summary.experimental.write_raw_pb(row.SerializeToString())


def of_run(
  task: task_lib.Task,
  facts: Mapping[str, Any],
  bindings: Sequence[str],
  name: str,
) -> HParams:
  """What a run was given.

  Args:
    task: Its Task; the optimizers and their plain rates are shown.
    facts: Further values by name; None is left out.
    bindings: What the command line bound, as in gin: these are swept.
    name: The trial's.
  """
  values = {key: fact for key, fact in facts.items() if fact is not None}
  optimizers = task.optimizers
  for attribute, optimizer in optimizers.items():
    values[attribute] = type(optimizer).__name__
    rate = optimizer.get_config().get('learning_rate')
    if isinstance(rate, int | float):  # no schedule
      alone = 'learning_rate'
      key = alone if len(optimizers) == 1 else f'{attribute}/{alone}'
      values[key] = float(f'{rate:.6g}')  # as written, not as float32 has it
  return HParams({**values, **literals.assigned(bindings)}, name)

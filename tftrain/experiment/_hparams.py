"""Hyperparameters of a run, for the HPARAMS tab of TensorBoard."""

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
  """A row of the table of hyperparameters, as an artifact.

  Attributes:
    values: Name -> value.
    name: Name of the trial; TensorBoard combines rows of the same name.
  """

  values: Mapping[str, literals.Value]
  name: str

  def fault(self) -> str | None:
    return None

  def write(self, tag: str) -> None:
    del tag  # the tab has a fixed tag
    row = summary_v2.hparams_pb(dict(self.values), trial_id=self.name)
    tf.summary.experimental.write_raw_pb(row.SerializeToString())


def of_run(
  task: task_lib.Task,
  facts: Mapping[str, Any],
  bindings: Sequence[str],
  name: str,
) -> HParams:
  """Returns the hyperparameters of a run.

  Args:
    task: Task of the run, for its optimizers and their constant rates.
    facts: Further values by name; None is left out.
    bindings: gin bindings of the command line, such as those of a sweep.
    name: Name of the trial.
  """
  values = {key: fact for key, fact in facts.items() if fact is not None}
  optimizers = task.optimizers
  for attribute, optimizer in optimizers.items():
    values[attribute] = type(optimizer).__name__
    rate = optimizer.get_config().get('learning_rate')
    if isinstance(rate, int | float):  # not a schedule
      alone = 'learning_rate'
      key = alone if len(optimizers) == 1 else f'{attribute}/{alone}'
      values[key] = float(f'{rate:.6g}')  # removes rounding of float32
  return HParams({**values, **literals.assigned(bindings)}, name)

"""Histograms: an Action that writes histograms of weights and gradients."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.report import action as action_lib
from tftrain.report import every as every_lib
from tftrain.report import interval
from tftrain.report import report as report_lib
from tftrain.summary import artifacts as artifacts_lib
from tftrain.summary import summary_writer as summary_writer_lib
from tftrain.task import task as task_lib


class WeightHistograms(action_lib.Action):
  """Writes histograms of the trainable variables for TensorBoard.

  A variable has the tag `weights/<name>`. With `gradients`, the tag
  `gradients/<name>` is the gradient of the loss before clipping, on the same
  batch each time; it costs a step that is not compiled.

  >>> Experiment(..., actions=[WeightHistograms(every=500)])

  Args:
    every: Interval: steps, a time such as '10m', or a list of both.
    gradients: Whether to write gradients, too; needs a Task with a `loss` and
      one optimizer.

  Raises:
    ConfigError: If `every` is not an interval.
  """

  part = 'summaries'
  needs_scalars = False
  place = 1

  def __init__(
    self,
    every: interval.Interval | Sequence[interval.Interval] = 1000,
    *,
    gradients: bool = False,
  ):
    self._gradients = gradients
    self._interval = every
    self._every = every_lib.Every(every, self._write)
    self._trainer: Any = None
    self._writer: summary_writer_lib.SummaryWriter | None = None

  def bind(self, run: report_lib.BoundRun) -> None:
    """Sets the run: weights of `run.trainer` go to `run.summary_writer`.

    An Experiment calls `bind`.

    Raises:
      ConfigError: If `gradients` is set and the Task has no `loss`, or not one
        optimizer.
    """
    self._every = every_lib.Every(self._interval, self._write)
    self._trainer, self._writer = run.trainer, run.summary_writer
    self.workers = run.trainer.workers.joined(self, self._gradients_of)
    if self._gradients:
      self._check_gradients()

  def next_due(self, step: int) -> int | None:
    return self._every.next_due(step)

  def __call__(self, report: report_lib.Report) -> None:
    if self._writer is None:
      raise errors.ConfigError(
        'WeightHistograms does not know whose weights to show; give it to '
        'Experiment.actions, or call its bind() first'
      )
    self._every(report)

  def _write(self, report: report_lib.Report) -> None:
    assert self._writer is not None
    owned = tracking.owned_by(self._trainer.task)
    shown = {
      f'weights/{name}': variables_lib.raw(variable)
      for name, variable in owned.trainable.items()
    }
    if self._gradients:
      with self.workers.calling(self._gradients_of):
        shown.update(self._gradients_of())
    self._writer.show(
      report.step,
      {tag: artifacts_lib.Histogram(values) for tag, values in shown.items()},
    )

  def _gradients_of(self) -> dict[str, Any]:
    """Returns tag -> gradient, on the example batch of the Trainer."""
    task = self._trainer.task
    owned = tracking.owned_by(task)
    names = {id(variable): name for name, variable in owned.variables.items()}
    with self._trainer.strategy.scope(), task.variables_restored():
      found = task.gradients(task.loss, self._trainer.example_batch)
    return {
      f'gradients/{names[id(variable)]}': tf.convert_to_tensor(value)
      for variable, value in zip(found.variables, found.values, strict=True)
    }

  def _check_gradients(self) -> None:
    task = self._trainer.task
    if type(task).loss is task_lib.Task.loss or task.optimizer is None:
      raise errors.ConfigError(
        f'WeightHistograms(gradients=True): {type(task).__name__} has no '
        'loss(batch, training) of its own with one optimizer; leave '
        'gradients=False'
      )

"""Counters: the variables that a compiled loop shares with its host."""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain.distribute import coordinator

RUN, PAUSE, STOP = 0, 1, 2
"""Values of `Counters.stop`: go on; leave a training loop, to save; leave any
loop."""


class Tally(NamedTuple):
  """Counts of the steps that are not finite, int64.

  Attributes:
    without_update: Steps that did not change the weights.
    skipped: Steps skipped because they were not finite.
    in_a_row: Steps that were not finite since the last finite step.
  """

  without_update: Any
  skipped: Any
  in_a_row: Any


@dataclasses.dataclass(frozen=True)
class Counters:
  """The variables that a compiled loop shares with its host.

  Attributes:
    step: int64, batches consumed.
    without_update: int64, steps that did not change the weights.
    skipped: int64, steps skipped because they were not finite.
    in_a_row: int64, steps that were not finite since the last finite step.
    stop: int32, RUN, PAUSE or STOP. Set it from any thread to end the loop
      before its next step.
    waited: float64, seconds of data stall (input wait).
    workers: The workers that leave a loop at the same step.
  """

  step: tf.Variable
  without_update: tf.Variable
  skipped: tf.Variable
  in_a_row: tf.Variable
  stop: tf.Variable
  waited: tf.Variable
  workers: coordinator.SingleWorker = coordinator.SINGLE_WORKER

  def with_stop(self, stop: tf.Variable) -> 'Counters':
    """Returns the counters with another `stop` variable."""
    return dataclasses.replace(self, stop=stop)

  def tally(self) -> Tally:
    """Returns the values of the Tally."""
    return Tally(
      self.without_update.read_value(),
      self.skipped.read_value(),
      self.in_a_row.read_value(),
    )

  def note(self, tally: Tally) -> None:
    """Sets the values of the Tally."""
    self.without_update.assign(tally.without_update, read_value=False)
    self.skipped.assign(tally.skipped, read_value=False)
    self.in_a_row.assign(tally.in_a_row, read_value=False)

  def updates(self) -> tf.Tensor:
    """Returns the number of steps that changed the weights."""
    return self.step.read_value() - self.without_update.read_value()

  def read_state(self) -> dict[str, tf.Tensor]:
    return {
      'step': self.step.read_value(),
      'updates': self.updates(),
      'skipped_steps': self.skipped.read_value(),
      'skipped_in_a_row': self.in_a_row.read_value(),
    }

  def write_state(self, state: Mapping[str, Any]) -> None:
    self.step.assign(state['step'])
    self.without_update.assign(state['step'] - state['updates'])
    self.skipped.assign(state['skipped_steps'])
    self.in_a_row.assign(state['skipped_in_a_row'])

  @classmethod
  def make(
    cls, workers: coordinator.SingleWorker = coordinator.SINGLE_WORKER
  ) -> 'Counters':
    with tf.device('CPU:0'):
      made = cls(
        step=tf.Variable(0, dtype=tf.int64, trainable=False),
        without_update=tf.Variable(0, dtype=tf.int64, trainable=False),
        skipped=tf.Variable(0, dtype=tf.int64, trainable=False),
        in_a_row=tf.Variable(0, dtype=tf.int64, trainable=False),
        stop=tf.Variable(RUN, dtype=tf.int32, trainable=False),
        waited=tf.Variable(0.0, dtype=tf.float64, trainable=False),
        workers=workers,
      )
    workers.asked(made.stop)  # creates its variable outside the loop
    return made

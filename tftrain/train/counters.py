"""Counters: the variables that a compiled loop shares with its host."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import tensorflow as tf

from tftrain.distribute import coordinator

RUN, PAUSE, STOP = 0, 1, 2
"""Values of `Counters.stop`: go on; leave a training loop, to save; leave any
loop."""


@dataclasses.dataclass(frozen=True)
class Counters:
  """The variables that a compiled loop shares with its host.

  Attributes:
    step: int64, batches consumed.
    updates: int64, updates applied to the weights.
    skipped: int64, steps skipped because they were not finite.
    in_a_row: int64, steps that were not finite since the last finite step.
    stop: int32, RUN, PAUSE or STOP. Set it from any thread to end the loop
      before its next step.
    waited: float64, seconds of data stall (input wait).
    workers: The workers that leave a loop at the same step.
  """

  step: tf.Variable
  updates: tf.Variable
  skipped: tf.Variable
  in_a_row: tf.Variable
  stop: tf.Variable
  waited: tf.Variable
  workers: coordinator.SingleWorker = coordinator.SINGLE_WORKER

  def with_stop(self, stop: tf.Variable) -> 'Counters':
    """Returns the counters with another `stop` variable."""
    return dataclasses.replace(self, stop=stop)

  def read_state(self) -> dict[str, tf.Tensor]:
    return {
      name: variable.read_value() for name, variable in self._saved().items()
    }

  def write_state(self, state: Mapping[str, Any]) -> None:
    for name, variable in self._saved().items():
      variable.assign(state[name])

  def _saved(self) -> dict[str, tf.Variable]:
    return {
      'step': self.step,
      'updates': self.updates,
      'skipped_steps': self.skipped,
      'skipped_in_a_row': self.in_a_row,
    }

  @classmethod
  def make(
    cls, workers: coordinator.SingleWorker = coordinator.SINGLE_WORKER
  ) -> 'Counters':
    with tf.device('CPU:0'):
      made = cls(
        step=tf.Variable(0, dtype=tf.int64, trainable=False),
        updates=tf.Variable(0, dtype=tf.int64, trainable=False),
        skipped=tf.Variable(0, dtype=tf.int64, trainable=False),
        in_a_row=tf.Variable(0, dtype=tf.int64, trainable=False),
        stop=tf.Variable(RUN, dtype=tf.int32, trainable=False),
        waited=tf.Variable(0.0, dtype=tf.float64, trainable=False),
        workers=workers,
      )
    workers.asked(made.stop)  # creates its variable outside the loop
    return made

"""Tracking: the variables and optimizers of a Task, found and freed."""

import gc
import weakref

import keras

from tests.support import error_lines
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors


def test_what_is_trained_and_not_found_again_is_refused():
  class Hidden(small_tasks.Weighted):
    def __init__(self, model):
      super().__init__(model)
      self._hidden = keras.optimizers.SGD(0.1)

    def train_step(self, batch):
      return self.minimize(self.loss, batch, optimizer=self._hidden)

  with error_lines.refused(
    errors.TaskError, 'SGD is trained but not found', 'start with'
  ):
    small_tasks.trainer(
      tftrain.Arrays(small_tasks.regression(), 8),
      lambda: Hidden(small_tasks.weighted(None).model),
    )


def test_what_is_no_longer_used_is_freed():
  class Mine(keras.Model):
    def __init__(self):
      super().__init__()
      self.dense = keras.layers.Dense(3)

    def call(self, x):
      return self.dense(x)

  trainer, _ = step_runs.train(lambda: step_runs.supervised(Mine()), 2)
  model = weakref.ref(trainer.task.model)
  del trainer
  keras.utils.clear_session()
  gc.collect()
  assert model() is None

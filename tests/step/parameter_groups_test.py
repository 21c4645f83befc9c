"""Frozen variables: their values stay, and freezing too late is refused."""

import keras
import numpy as np

from tests.support import error_lines
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors


def test_freezing_a_layer_too_late_is_refused():
  run = small_tasks.trainer(tftrain.Arrays(small_tasks.arrays(), 8))
  run.task.model.layers[0].trainable = False
  with error_lines.refused(errors.TaskError, 'dense/', 'freeze layers before'):
    run.train(1)


def test_a_layer_frozen_before_stays_as_it_is():
  def make():
    task = small_tasks.supervised()
    task.model.layers[0].trainable = False
    return task

  run = small_tasks.trainer(tftrain.Arrays(small_tasks.arrays(), 8), make)
  before = [v.numpy() for v in run.task.model.layers[0].variables]
  run.train(5)
  for value, variable in zip(
    before, run.task.model.layers[0].variables, strict=True
  ):
    np.testing.assert_array_equal(value, variable.numpy())


def test_what_one_task_froze_the_next_one_trains():
  model = small_tasks.model()
  step_runs.train(lambda: step_runs.supervised(model), 1, freeze='dense/')
  assert model.layers[0].trainable
  before = model.layers[0].kernel.numpy()
  step_runs.train(lambda: step_runs.supervised(model), 1)
  assert (model.layers[0].kernel.numpy() != before).any()


def test_a_frozen_batch_normalization_rests():
  normalization = keras.layers.BatchNormalization()
  model = step_runs.layered(normalization, keras.layers.Dense(3))
  step_runs.train(
    lambda: step_runs.supervised(model), 3, freeze='batch_normalization'
  )
  assert normalization.moving_mean.numpy().max() == 0.0
  assert normalization.trainable

"""Synchronized batch normalization: the batch of all replicas."""

import keras
import numpy as np
import pytest

from tests.support import small_tasks
from tests.support import step_runs
import tftrain


def test_batch_normalization_sees_the_whole_batch_on_two_replicas():
  data = tftrain.Arrays(small_tasks.arrays(), 8, epochs=1)  # ends with 3 rows
  runs = [
    step_runs.train(step_runs.normalized, 9, name, data)[0]
    for name in step_runs.STRATEGIES
  ]
  small_tasks.assert_close(*step_runs.states(runs), 2e-6)
  alone, _ = step_runs.train(
    step_runs.normalized, 9, 'mirrored', data, sync_batch_norm=False
  )
  name = 'model/sequential/batch_normalization/moving_variance'
  together = small_tasks.state_of(runs[0])[name]
  assert np.abs(small_tasks.state_of(alone)[name] - together).max() > 1e-3


@pytest.mark.slow
def test_xla_and_synchronized_batch_normalization_exclude_each_other():
  with pytest.raises(tftrain.Error, match='Update.jit: XLA cannot hold'):
    step_runs.train(step_runs.normalized, 1, 'mirrored', jit='step')
  step_runs.train(
    step_runs.normalized, 1, 'mirrored', jit='step', sync_batch_norm=False
  )


class Namesakes(keras.Model):
  def __init__(self):
    super().__init__()
    self.norms = [keras.layers.BatchNormalization(name='bn') for _ in range(3)]
    self.dense = keras.layers.Dense(3)

  def call(self, x, training=False):
    for norm in self.norms:
      x = norm(x, training=training)
    return self.dense(x)


@pytest.mark.slow
def test_layers_of_one_name_are_all_synchronized():
  runs = [
    step_runs.train(lambda: step_runs.supervised(Namesakes()), 4, name)[0]
    for name in step_runs.STRATEGIES
  ]
  small_tasks.assert_close(*step_runs.states(runs), 2e-6)
  assert not any(norm.synchronized for norm in runs[1].task.model.norms)

"""Variables that add up over replicas: not multiplied."""

import keras
import numpy as np
import tensorflow as tf

from tests.support import step_runs


class Summing(tf.Module):
  """Its variables add up over replicas what is assigned on each."""

  def __init__(self):
    super().__init__()
    self.w, self.b = (
      tf.Variable(value, aggregation=tf.VariableAggregation.SUM)
      for value in (tf.fill([6, 3], 0.1), tf.fill([3], 0.1))
    )

  def __call__(self, x, training=False):
    return x @ self.w + self.b


def test_variables_that_add_up_are_not_multiplied():
  rate_0 = lambda: step_runs.supervised(Summing(), keras.optimizers.SGD(0.0))
  trainer, _ = step_runs.train(rate_0, 3, 'mirrored')
  np.testing.assert_allclose(trainer.task.model.b.numpy(), 0.1)

"""AutoGraph: control flow on data compiles in losses, layers and modules."""

import keras
import pytest
import tensorflow as tf

from tests.support import small_tasks
from tests.support import step_runs
import tftrain


class Halving(keras.layers.Layer):
  """Halves its inputs until they are small: how often depends on the data."""

  def __init__(self):
    super().__init__()
    self.gain = self.add_weight(shape=(), initializer='ones')

  def call(self, x):
    x = x * self.gain
    while tf.reduce_max(tf.abs(x)) > 1.0:
      x = x / 2.0
    if tf.reduce_sum(x) > 0:
      x = -x
    return x


class Layered(keras.Model):
  def __init__(self):
    super().__init__()
    self.halving = Halving()
    self.dense = keras.layers.Dense(3)

  def call(self, x, training=False):
    return self.dense(self.halving(x))


@pytest.mark.parametrize('model', [step_runs.HalvingModule, Layered])
@pytest.mark.parametrize('strategy', step_runs.STRATEGIES)
def test_control_flow_on_data_compiles_in_layers_and_modules(model, strategy):
  def make():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model(), loss, keras.optimizers.SGD(0.1))

  compiled, _ = step_runs.train(make, 5, strategy)
  tf.config.run_functions_eagerly(True)
  try:
    eager, _ = step_runs.train(make, 5, strategy)
  finally:
    tf.config.run_functions_eagerly(False)
  small_tasks.assert_close(*step_runs.states([compiled, eager]), 1e-6)
  assert 'call' not in vars(compiled.task.model)


class Collatz(tftrain.Task):
  """Data-dependent control flow in a loss, as AutoGraph compiles it."""

  def loss(self, batch, training):
    x, _ = batch
    total = tf.zeros([])
    for row in x:
      if tf.reduce_sum(row) > 0:
        total += tf.reduce_sum(row)
      n = 0
      while n < 3:
        total += 1.0
        n += 1
    values = self.model(x, training=training)[:, 0] ** 2
    return tftrain.Loss(values, total=tf.fill([len(x)], total))


def test_autograph_compiles_what_the_user_wrote():
  x, y = small_tasks.arrays(examples=8)
  task = Collatz(small_tasks.model(), keras.optimizers.SGD(0.0))
  run = tftrain.Trainer(task, [(x, y)])
  report = run.train(3)
  sums = x.sum(-1)
  expected = sums[sums > 0].sum() + 3 * 8
  assert report.scalars['total'] == pytest.approx(expected, rel=1e-5)

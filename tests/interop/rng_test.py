"""Random numbers in layers: distinct on replicas, repeated by a restart."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
from tests.support import step_runs
import tftrain


def test_random_numbers_that_no_checkpoint_holds_are_warned_of(caplog):
  class Noisy(small_tasks.Weighted):
    def loss(self, batch, training):
      noise = tf.random.normal([8]) if training else 0.0
      values = self.model(batch[0])[:, 0] ** 2
      return tftrain.Loss(values + noise)

  run = small_tasks.trainer(
    tftrain.Arrays(small_tasks.regression(), 8),
    lambda: Noisy(small_tasks.weighted(None).model, keras.optimizers.SGD()),
  )
  run.train(1)
  assert 'RandomStandardNormal' in caplog.text
  caplog.clear()
  dropout = lambda: small_tasks.supervised(dropout=0.5)
  small_tasks.trainer(tftrain.Arrays(small_tasks.arrays(), 8), dropout).train(1)
  assert 'random' not in caplog.text


class Noisy(step_runs.Sharpness):
  """Draws noise, in evaluations too."""

  def __init__(self, model, optimizer):
    super().__init__(model, optimizer)
    self.seeds = keras.random.SeedGenerator(7)

  def loss(self, batch, training):
    x, y = batch
    x += 0.1 * keras.random.normal(tf.shape(x), seed=self.seeds)
    return super().loss((x, y), training)

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


@pytest.mark.slow
def test_an_evaluation_that_draws_noise_leaves_training_alone():
  quiet, _ = step_runs.train(step_runs.of(Noisy), 6)
  watched, _ = step_runs.train(step_runs.of(Noisy), 3)
  data = tftrain.Arrays(small_tasks.arrays(), 8, training=False)
  tftrain.Evaluator(watched.task, data).evaluate()
  watched.train(6)
  small_tasks.assert_same_bits(*step_runs.states([quiet, watched]))


def test_dropout_masks_differ_between_replicas_and_repeat():
  seen = {}
  x, y = small_tasks.arrays(8)
  same_rows = (np.repeat(x[:1], 8, 0), np.repeat(y[:1], 8, 0))
  for name in step_runs.STRATEGIES:
    make = lambda: small_tasks.supervised(dropout=0.4)
    runs = [step_runs.train(make, 5, name, [same_rows])[0] for _ in range(2)]
    small_tasks.assert_same_bits(*step_runs.states(runs, ()))
    seen[name] = small_tasks.state_of(runs[0])['model/sequential/dense/kernel']
  # With equal masks the gradient of four equal rows twice is that of eight.
  assert np.abs(seen['one_device'] - seen['mirrored']).max() > 1e-6


def test_replicas_draw_different_seeds():
  strategy = tftrain.make_strategy('mirrored')
  with strategy.scope():
    task = step_runs.normalized(dropout=0.5)
    generator = task.model.layers[2].seed_generator
    trainer = tftrain.Trainer(
      task, tftrain.Arrays(small_tasks.arrays(), 8), strategy=strategy
    )

  @tf.function
  def draw():
    with trainer.task.step_runner.calls():
      return strategy.run(generator.next)

  first, second = strategy.experimental_local_results(draw())
  assert (first.numpy() != second.numpy()).any()


class Autoencoder(step_runs.OwnStep):
  """One of its models is inside the other."""

  def __init__(self):
    super().__init__(optimizer=keras.optimizers.SGD(0.1))
    dropout = keras.layers.Dropout(0.5)
    self.encoder = step_runs.layered(keras.layers.Dense(4), dropout)
    self.model = keras.Sequential([self.encoder, keras.layers.Dense(3)])


@pytest.mark.parametrize('strategy', step_runs.STRATEGIES)
def test_a_model_inside_another_may_draw_random_numbers(strategy):
  trainer, _ = step_runs.train(Autoencoder, 2, strategy)
  (generator,) = trainer.task.step_runner._owned.seeds
  assert 'next' not in vars(generator)

"""Keras optimizers: all train as in Keras; unsuited options are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_optimizers_that_go_wrong_are_refused(strategy):
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  optimizers = keras.optimizers
  wrong = {
    'loss scale': [
      lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1)),
      lambda: optimizers.SGD(0.1, loss_scale_factor=8.0),
    ],
    'tftrain.Update(accumulate=...)': [
      lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2)
    ],
    'tftrain.Update(ema=...)': [
      lambda: optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3)
    ],
    'tftrain.Update(clip_norm=...)': [
      lambda: optimizers.SGD(0.1, global_clipnorm=1.0)
    ],
    'SGD(clipnorm=...) clips each variable by its own norm': [
      lambda: optimizers.SGD(0.1, clipnorm=1.0)
    ],
    'tftrain.Update(clip_value=...)': [
      lambda: optimizers.SGD(0.1, clipvalue=1.0)
    ],
  }
  for fragment, makes in wrong.items():
    for make in makes:
      with error_lines.refused(errors.TaskError, fragment):
        small_tasks.trainer(
          data, lambda make=make: small_tasks.supervised(make()), strategy
        )


@pytest.mark.parametrize(
  'name',
  'SGD Adam AdamW Nadam RMSprop Adagrad Adadelta Adamax Lion Ftrl Adafactor '
  'Lamb Muon'.split(),
)
def test_every_optimizer_does_what_keras_does(name):
  make = getattr(keras.optimizers, name)
  trainer, _ = step_runs.train(lambda: small_tasks.supervised(make(0.01)), 3)
  keras.utils.set_random_seed(3)
  task = small_tasks.supervised(make(0.01))
  data = trainer.pipeline
  for step in range(3):
    x, y = data.batch(0, tf.constant(step, tf.int64))
    with tf.GradientTape() as tape:
      value = tf.reduce_mean(
        step_runs.cross_entropy(y, task.model(x, training=True))
      )
    weights = task.model.trainable_variables
    task.optimizer.apply(tape.gradient(value, weights), weights)
  for ours, theirs in zip(
    trainer.task.model.get_weights(), task.model.get_weights(), strict=True
  ):
    # Lion and Muon look at signs and directions of tiny gradients.
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_constraints_hold():
  def make():
    layer = keras.layers.Dense(3, kernel_constraint=keras.constraints.NonNeg())
    model = keras.Sequential([keras.Input((6,)), layer])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD(0.5))

  trainer, _ = step_runs.train(make, 5)
  assert trainer.task.model.layers[0].kernel.numpy().min() == 0.0


def test_an_optimizer_that_was_used_before_is_refused():
  model = small_tasks.model()
  optimizer = keras.optimizers.Adam()
  optimizer.build(model.trainable_variables)
  with pytest.raises(tftrain.Error, match='Adam is built already, by compile'):
    step_runs.train(lambda: step_runs.supervised(model, optimizer), 1)


def test_a_schedule_that_comes_too_late_is_refused():
  trainer, _ = step_runs.train(small_tasks.supervised, 1)
  decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
  trainer.task.optimizer.learning_rate = decay
  with pytest.raises(tftrain.Error, match='became a schedule after the Train'):
    trainer.train(2)

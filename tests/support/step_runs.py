"""Short runs of steps of all kinds, and their states."""

import keras
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain

STRATEGIES = ('one_device', 'mirrored')
MIRRORED_SLOW = ('one_device', pytest.param('mirrored', marks=pytest.mark.slow))


def train(make_task, steps, strategy='one_device', data=None, **options):
  """A Trainer that has taken `steps` steps, and its last Report."""
  keras.utils.set_random_seed(3)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make_task()
  data = data or tftrain.Arrays(small_tasks.arrays(), 8)
  update = tftrain.Update(**options)
  trainer = tftrain.Trainer(task, data, strategy=strategy, update=update)
  return trainer, trainer.train(steps)


def states(runs, leave_out=('trainer/means',)):
  """Their states, without the norms that sum in another order."""
  return [
    {k: v for k, v in small_tasks.state_of(run).items() if k not in leave_out}
    for run in runs
  ]


def cross_entropy(y, logits):
  return keras.losses.sparse_categorical_crossentropy(
    y, logits, from_logits=True
  )


class Sharpness(tftrain.Task):
  """SAM (Foret et al. 2021): the gradient at the worst point nearby."""

  def loss(self, batch, training):
    x, y = batch
    return tftrain.Loss(cross_entropy(y, self.model(x, training=training)))

  def train_step(self, batch):
    here = self.gradients(self.loss, batch)
    before = [tf.convert_to_tensor(v) for v in here.variables]
    for variable, gradient in zip(here.variables, here.values, strict=True):
      variable.assign_add(0.05 * gradient / here.norm)
    there = self.gradients(self.loss, batch)
    for variable, value in zip(here.variables, before, strict=True):
      variable.assign(value)
    return self.apply(there)


def of(kind, optimizer=keras.optimizers.Adam):
  return lambda: kind(small_tasks.model(), optimizer(0.01))


def normalized(dropout=0.0):
  layers = [
    keras.Input((6,)),
    keras.layers.Dense(8),
    keras.layers.BatchNormalization(),
    keras.layers.Dropout(dropout),
    keras.layers.Dense(3),
  ]
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  optimizer = keras.optimizers.SGD(0.05)
  return tftrain.SupervisedTask(keras.Sequential(layers), loss, optimizer)


class HalvingModule(tf.Module):
  def __init__(self):
    super().__init__()
    self.dense = keras.layers.Dense(3)
    self.gain = tf.Variable(1.0)

  def __call__(self, x, training=False):
    x = x * self.gain
    total = tf.zeros_like(x)
    for index in tf.range(tf.shape(x)[1] // 2):
      total += x / tf.cast(index + 1, tf.float32)
    while tf.reduce_max(tf.abs(total)) > 1.0:
      total = total / 2.0
    return self.dense(total)


def supervised(model, optimizer=None):
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return tftrain.SupervisedTask(
    model, loss, optimizer or keras.optimizers.SGD(0.1)
  )


def layered(*layers):
  return keras.Sequential([keras.Input((6,)), *layers])


class OwnStep(tftrain.Task):
  def train_step(self, batch):
    return self.minimize(self.descend, batch)

  def descend(self, batch, training):
    x, y = batch
    return tftrain.Loss(cross_entropy(y, self.model(x, training=training)))


class Critic(OwnStep):
  """`loss` for evaluation; the step also trains what only it calls."""

  def __init__(self, model, optimizer):
    super().__init__(model, optimizer)
    self.critic = keras.Sequential([keras.layers.Dense(1)])
    self.critic_optimizer = keras.optimizers.SGD(0.1)

  def loss(self, batch, training):
    return self.descend(batch, training)

  def judge(self, batch, training):
    return tftrain.Loss(self.critic(batch[0])[:, 0] ** 2)

  def train_step(self, batch):
    self.minimize(
      self.judge, batch, self.critic, self.critic_optimizer, name='critic'
    )
    return self.minimize(self.loss, batch, self.model)

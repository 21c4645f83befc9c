"""Where a step could go wrong without a word: each of these once did."""

import gc
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
from tests import step_test
import tftrain

train, states = step_test.train, step_test.states
cross_entropy = step_test.cross_entropy


def supervised(model, optimizer=None):
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return tftrain.SupervisedTask(
    model, loss, optimizer or keras.optimizers.SGD(0.1)
  )


def layered(*layers):
  return keras.Sequential([keras.Input((6,)), *layers])


def test_what_one_task_froze_the_next_one_trains():
  model = cases.model()
  train(lambda: supervised(model), 1, freeze='dense/')
  assert model.layers[0].trainable
  before = model.layers[0].kernel.numpy()
  train(lambda: supervised(model), 1)
  assert (model.layers[0].kernel.numpy() != before).any()


def test_a_frozen_batch_normalization_rests():
  normalization = keras.layers.BatchNormalization()
  model = layered(normalization, keras.layers.Dense(3))
  train(lambda: supervised(model), 3, freeze='batch_normalization')
  assert normalization.moving_mean.numpy().max() == 0.0
  assert normalization.trainable


@pytest.mark.parametrize('scale', ['auto', None])
def test_weights_of_half_precision_learn(scale):
  dense = keras.layers.Dense(3, dtype='float16')
  trainer, report = train(
    lambda: supervised(layered(dense)), 30, loss_scale=scale, ema=0.9
  )
  assert 0.1 < report.scalars['gradient_norm'] < 10
  assert report.scalars['loss'] < 0.9
  averages = trainer.task.engine.appliers()['optimizer'].average.variables
  assert {average.dtype for average in averages} == {tf.float32}


class Nudged(tftrain.SupervisedTask):
  """Assigns one entry of a weight after each update."""

  def train_step(self, batch):
    step = self.minimize(self.loss, batch)
    bias = self.model.layers[0].bias.value
    bias[0].assign(bias[0] + 1.0)
    bias.scatter_nd_add([[1]], [2.0])
    return step


@pytest.mark.parametrize('steps_per_loop', [1, 100])
def test_an_entry_assigned_in_a_step_is_kept(steps_per_loop):
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  task = Nudged(cases.model(), loss, keras.optimizers.SGD(1e-6))
  tftrain.Trainer(
    task, tftrain.Arrays(cases.arrays(), 8), steps_per_loop=steps_per_loop
  ).train(5)
  bias = task.model.layers[0].bias.numpy()
  np.testing.assert_allclose(bias[:3], [5.0, 10.0, 0.0], atol=1e-4)


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
  rate_0 = lambda: supervised(Summing(), keras.optimizers.SGD(0.0))
  trainer, _ = train(rate_0, 3, 'mirrored')
  np.testing.assert_allclose(trainer.task.model.b.numpy(), 0.1)


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
    train(lambda: supervised(Namesakes()), 4, name)[0]
    for name in step_test.STRATEGIES
  ]
  cases.assert_close(*states(runs), 2e-6)
  assert not any(norm.synchronized for norm in runs[1].task.model.norms)


def test_an_optimizer_that_was_used_before_is_refused():
  model = cases.model()
  optimizer = keras.optimizers.Adam()
  optimizer.build(model.trainable_variables)
  with pytest.raises(tftrain.Error, match='Adam is built already, by compile'):
    train(lambda: supervised(model, optimizer), 1)


class OwnStep(tftrain.Task):
  def train_step(self, batch):
    return self.minimize(self.descend, batch)

  def descend(self, batch, training):
    x, y = batch
    return tftrain.Loss(cross_entropy(y, self.model(x, training=training)))


def test_a_lazily_built_layer_starts_at_its_initial_values():
  layers = [keras.layers.Dense(3), keras.layers.BatchNormalization()]
  make = lambda: OwnStep(keras.Sequential(layers), keras.optimizers.SGD(0.1))
  trainer, _ = train(make, 0)
  assert trainer.task.model.layers[1].moving_mean.numpy().any() == 0


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


def test_a_model_that_only_the_step_calls_is_built_and_trained():
  trainer, report = train(step_test.of(Critic), 3)
  assert report.scalars['critic/loss'] >= 0
  appliers = trainer.task.engine.appliers()
  assert list(appliers['critic_optimizer'].trained) == [
    'critic/sequential/dense/kernel',
    'critic/sequential/dense/bias',
  ]


class Poisoned(Critic):
  def judge(self, batch, training):
    return tftrain.Loss(self.critic(batch[0])[:, 0] / 0.0)


def test_the_error_shows_the_loss_that_was_not_finite():
  with pytest.raises(
    tftrain.errors.NonFiniteError, match='loss (nan|inf|-inf)'
  ):
    train(step_test.of(Poisoned), 1)


class Contrast(OwnStep):
  """Looks at the examples of all replicas."""

  def loss(self, batch, training):
    x, y = batch
    logits = self.model(x, training=training)
    context = tf.distribute.get_replica_context()
    everybody = context.all_gather(logits, axis=0)
    logits -= 0.1 * tf.reduce_mean(everybody, axis=0)
    return tftrain.Loss(cross_entropy(y, logits))

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


@pytest.mark.slow
def test_a_loss_may_look_at_all_replicas():
  runs = [
    train(step_test.of(Contrast, keras.optimizers.SGD), 3, name)[0]
    for name in step_test.STRATEGIES
  ]
  cases.assert_close(*states(runs), 1e-5)


def test_a_schedule_that_comes_too_late_is_refused():
  trainer, _ = train(cases.supervised, 1)
  decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
  trainer.task.optimizer.learning_rate = decay
  with pytest.raises(tftrain.Error, match='became a schedule after the Train'):
    trainer.train(2)


class Autoencoder(OwnStep):
  """One of its models is inside the other."""

  def __init__(self):
    super().__init__(optimizer=keras.optimizers.SGD(0.1))
    dropout = keras.layers.Dropout(0.5)
    self.encoder = layered(keras.layers.Dense(4), dropout)
    self.model = keras.Sequential([self.encoder, keras.layers.Dense(3)])


@pytest.mark.parametrize('strategy', step_test.STRATEGIES)
def test_a_model_inside_another_may_draw_random_numbers(strategy):
  trainer, _ = train(Autoencoder, 2, strategy)
  (generator,) = trainer.task.engine._owned.seeds
  assert 'next' not in vars(generator)


def test_clipping_by_units_takes_any_precision():
  dense = keras.layers.Dense(3, dtype='float64')
  _, report = train(lambda: supervised(layered(dense)), 3, clip_adaptive=0.01)
  assert report.scalars['loss'] > 0


def test_what_is_no_longer_used_is_freed():
  class Mine(keras.Model):
    def __init__(self):
      super().__init__()
      self.dense = keras.layers.Dense(3)

    def call(self, x):
      return self.dense(x)

  trainer, _ = train(lambda: supervised(Mine()), 2)
  model = weakref.ref(trainer.task.model)
  del trainer
  keras.utils.clear_session()
  gc.collect()
  assert model() is None


def test_a_call_that_was_set_on_a_layer_stays():
  model = layered(keras.layers.Dense(3))
  dense = model.layers[0]
  plain = type(dense).call
  dense.call = types.MethodType(
    lambda self, x, training=None: 0.0 * plain(self, x), dense
  )
  train(lambda: supervised(model), 1)
  assert not model(np.ones([2, 6])).numpy().any()


def test_a_second_trainer_that_differs_says_in_what():
  trainer, _ = train(cases.supervised, 1)
  data = tftrain.Arrays(cases.arrays(), 8)
  with pytest.raises(tftrain.Error, match='give all its Trainers the same upd'):
    tftrain.Trainer(trainer.task, data, update=tftrain.Update(ema=0.9))
  with pytest.raises(tftrain.Error, match='was built under another strategy'):
    tftrain.Trainer(
      trainer.task, data, strategy=tftrain.make_strategy('mirrored')
    )

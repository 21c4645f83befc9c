"""Layer losses: each belongs to the call that made it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain

_RATE = 0.01
_WAYS = {
  'plain': ('one_device', {}),
  'accumulate': ('one_device', {'accumulate': 2}),
  'two replicas': ('mirrored', {}),
  'two replicas, accumulate': ('mirrored', {'accumulate': 2}),
}
_QUICK = ('plain', 'two replicas, accumulate')
ways = pytest.mark.parametrize(
  ('strategy', 'options'),
  [
    pytest.param(*way, marks=[] if name in _QUICK else pytest.mark.slow)
    for name, way in _WAYS.items()
  ],
  ids=_WAYS.keys(),
)


def data(rows=8):
  random = np.random.RandomState(0)
  x = random.normal(size=(rows, 3)).astype('float32')
  x[rows // 2 :] *= 3.0  # so that halves have other penalties
  return x, x.sum(1)


class Adds(keras.layers.Layer):
  """Adds a scalar mean over its rows, or one value per row."""

  def __init__(self, per_row):
    super().__init__()
    self._per_row = per_row

  def call(self, x):
    squares = tf.reduce_sum(x**2, -1)
    self.add_loss(0.1 * (squares if self._per_row else tf.reduce_mean(squares)))
    return x


def model(per_row=None, norm=False):
  keras.utils.set_random_seed(0)
  l2 = keras.regularizers.L2
  layers = [
    keras.Input((3,)),
    keras.layers.Dense(
      4, activity_regularizer=l2(0.5), kernel_regularizer=l2(0.2)
    ),
  ]
  if per_row is not None:
    layers.append(Adds(per_row))
  if norm:
    layers.append(keras.layers.BatchNormalization())
  return keras.Sequential([*layers, keras.layers.Dense(1)])


class Regression(tftrain.Task):
  weighted = False

  def loss(self, batch, training):
    x, y = batch
    error = (self.model(x, training=training)[:, 0] - y) ** 2
    weights = tf.abs(y) if self.weighted else None
    return tftrain.Loss(error, weights)


class WeightedRegression(Regression):
  weighted = True


def by_hand(net, kind):
  """One step of plain TensorFlow on one device: loss, and weights after it."""
  x, y = data()
  with tf.GradientTape() as tape:
    error = (net(x, training=True)[:, 0] - y) ** 2
    weights = np.abs(y) if kind.weighted else np.ones_like(y)
    loss = tf.reduce_sum(error * weights) / weights.sum()
    loss += tf.add_n([tf.reduce_sum(term) for term in net.losses])
  gradients = tape.gradient(loss, net.trainable_variables)
  for variable, gradient in zip(
    net.trainable_variables, gradients, strict=True
  ):
    variable.assign_sub(_RATE * gradient)
  return float(loss), net.get_weights()


def trained(kind, make, strategy, options):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = kind(make(), keras.optimizers.SGD(_RATE))
  trainer = tftrain.Trainer(
    task,
    tftrain.Arrays(data(), 8, training=False),
    strategy=strategy,
    log_every=1,
    update=tftrain.Update(**options),
  )
  return task, trainer.train(1).scalars['loss']


@ways
@pytest.mark.parametrize('kind', [Regression, WeightedRegression])
@pytest.mark.parametrize('per_row', [None, False, True])
def test_a_step_equals_one_device(strategy, options, kind, per_row):
  expected, weights = by_hand(model(per_row), kind)
  task, loss = trained(kind, lambda: model(per_row), strategy, options)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for one, other in zip(weights, task.model.get_weights(), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_synchronized_batch_normalization_and_a_penalty_on_two_replicas():
  expected, weights = by_hand(model(norm=True), Regression)
  make = lambda: model(norm=True)
  task, loss = trained(Regression, make, 'mirrored', {})
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  trainable = [v.numpy() for v in task.model.trainable_variables]
  other = model(norm=True)
  other.set_weights(weights)
  for one, two in zip(trainable, other.trainable_variables, strict=True):
    np.testing.assert_allclose(one, two.numpy(), rtol=0, atol=1e-5)


def test_rematerialized_layers_add_once():
  expected, weights = by_hand(model(False), Regression)
  make = lambda: model(False)
  options = {'remat': 'dense'}
  task, loss = trained(Regression, make, 'one_device', options)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for one, other in zip(weights, task.model.get_weights(), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_an_evaluation_has_the_penalties_of_its_rows(strategy):
  net = model(False)
  x, y = data()
  error = (net(x, training=False)[:, 0] - y) ** 2
  expected = float(tf.reduce_mean(error) + tf.add_n(net.losses))
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = Regression(model(False), keras.optimizers.SGD(_RATE))
  parts = [(x[:5], y[:5]), (x[5:], y[5:])]
  evaluator = tftrain.Evaluator(task, parts, strategy=strategy)
  for _ in range(2):
    found = evaluator.evaluate()['loss']
    np.testing.assert_allclose(found, expected, rtol=1e-6)


class Two(tftrain.Task):
  """A teacher with penalties and a student without, each with its loss."""

  def __init__(self, calls=1):
    super().__init__()
    self.teacher = model()
    student = [keras.Input((3,)), keras.layers.Dense(1)]
    self.student = keras.Sequential(student)
    self.teacher_optimizer = keras.optimizers.SGD(_RATE)
    self.optimizer = keras.optimizers.SGD(_RATE)
    self._calls = calls

  def train_step(self, batch):
    teacher = self.teacher.trainable_variables
    self.minimize(
      self.teacher_loss, batch, teacher, self.teacher_optimizer, name='teacher'
    )
    return self.minimize(self.loss, batch, self.student.trainable_variables)

  def teacher_loss(self, batch, training):
    x, y = batch
    outputs = [self.teacher(x, training=training) for _ in range(self._calls)]
    return tftrain.Loss((outputs[0][:, 0] - y) ** 2)

  def loss(self, batch, training):
    x, y = batch
    error = (self.student(x, training=training)[:, 0] - y) ** 2
    return tftrain.Loss(error, squared=error)


@pytest.mark.slow
@ways
@pytest.mark.parametrize('early', [True, False])
def test_a_loss_gets_the_terms_of_the_layers_that_it_called(
  strategy, options, early
):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = Two()
  batches = tftrain.Arrays(data(), 8, training=False)
  update = tftrain.Update(**options)
  trainer = tftrain.Trainer(
    task, batches, strategy=strategy, log_every=1, update=update
  )
  make = lambda: tftrain.Evaluator(task, [data()], strategy=strategy)
  evaluator = make() if early else None
  expected, _ = by_hand(model(), Regression)
  scalars = trainer.train(1).scalars
  np.testing.assert_allclose(scalars['teacher/loss'], expected, rtol=1e-5)
  np.testing.assert_allclose(scalars['loss'], scalars['squared'], rtol=1e-6)
  found = (evaluator or make()).evaluate()
  np.testing.assert_allclose(found['loss'], found['squared'], rtol=1e-6)


def test_a_model_called_twice_adds_twice_and_its_weights_once():
  net = model()
  x, y = data()
  error = float(tf.reduce_mean((net(x)[:, 0] - y) ** 2))
  kernel = float(0.2 * tf.reduce_sum(net.layers[0].kernel ** 2))
  activity = float(tf.add_n(net.losses)) - kernel
  task = Two(calls=2)
  trainer = tftrain.Trainer(
    task, tftrain.Arrays(data(), 8, training=False), log_every=1
  )
  found = trainer.train(1).scalars['teacher/loss']
  np.testing.assert_allclose(found, error + kernel + 2 * activity, rtol=1e-5)


def test_replica_invariance_holds_with_a_penalty():
  make = lambda: Regression(model(False, norm=True), keras.optimizers.SGD(0.01))
  lines = tftrain.testing.assert_replica_invariant(
    make, tftrain.Arrays(small_tasks.regression(24)[:2], 8)
  )
  assert not [line for line in lines if 'loss' in line]

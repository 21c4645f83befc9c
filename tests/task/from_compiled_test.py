"""Compiled Keras models: from_compiled beside Keras's own fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tftrain
from tftrain import errors

layers = keras.layers


def data(rows=48):
  x = np.random.RandomState(0).normal(size=(rows, 4)).astype('float32')
  return x, x.sum(1, keepdims=True)


def weights(rows=48):
  return (np.arange(rows) % 3).astype('float32')


def network(kind=keras.Model):
  keras.utils.set_random_seed(0)
  inputs = keras.Input((4,))
  hidden = layers.Dense(4, 'tanh', kernel_regularizer='l2')(inputs)
  return kind(inputs, layers.Dense(1)(hidden))


class OwnLoss(keras.Model):
  """A compute_loss that calls Keras's, which adds what layers add."""

  def compute_loss(
    self, x=None, y=None, y_pred=None, sample_weight=None, training=True
  ):
    plain = super().compute_loss(x, y, y_pred, sample_weight, training)
    return 0.5 * plain + tf.reduce_mean(tf.abs(y - y_pred))


class OnlyOwnLoss(keras.Model):
  """A compute_loss that leaves out what layers add, as Keras then does."""

  def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
    return tf.reduce_mean(tf.abs(y - y_pred))


class OwnStep(keras.Model):
  def train_step(self, data):
    return super().train_step(data)


class OwnTest(keras.Model):
  def test_step(self, data):
    return super().test_step(data)


class OwnMetrics(keras.Model):
  def compute_metrics(self, x, y, y_pred, sample_weight=None):
    return super().compute_metrics(x, y, y_pred, sample_weight)


def compiled(kind=keras.Model, loss='mse', **options):
  model = network(kind)
  options = {'optimizer': keras.optimizers.Adam(0.05), **options}
  model.compile(
    loss=loss,
    metrics=['mae', keras.metrics.RootMeanSquaredError(name='rmse')],
    weighted_metrics=['mae'],
    **options,
  )
  return model


def trained(task, arrays):
  trainer = tftrain.Trainer(
    task, tftrain.Arrays(arrays, 8, training=False), log_every=6
  )
  return trainer.train(6).scalars


@pytest.mark.parametrize(
  ('kind', 'loss', 'with_weights'),
  [
    pytest.param(keras.Model, 'mse', False, marks=pytest.mark.slow),
    (keras.Model, 'mse', True),
    (OwnLoss, 'mse', False),
    pytest.param(OnlyOwnLoss, None, False, marks=pytest.mark.slow),
  ],
)
def test_a_compiled_model_trains_as_fit_does(kind, loss, with_weights):
  x, y = data()
  given = weights() if with_weights else None
  model = compiled(kind, loss)
  history = model.fit(
    x, y, 8, 1, shuffle=False, verbose=0, sample_weight=given
  ).history
  task = tftrain.SupervisedTask.from_compiled(compiled(kind, loss))
  scalars = trained(task, (x, y) if given is None else (x, y, given))
  for one, other in zip(
    task.model.get_weights(), model.get_weights(), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
  # Keras counts elements of weight 0 in metrics without weights.
  same = ['loss', 'weighted_mae'] + ([] if with_weights else ['mae', 'rmse'])
  for name in same:
    np.testing.assert_allclose(scalars[name], history[name][0], rtol=1e-6)


def test_an_own_scalar_loss_is_refused_where_it_is_not_exact():
  x, y = data()
  task = tftrain.SupervisedTask.from_compiled(compiled(OwnLoss))
  with pytest.raises(errors.TaskError, match='not exact with weights in the'):
    trained(task, (x, y, weights()))
  arrays = tftrain.Arrays((x, y), 8)
  with pytest.raises(errors.TaskError, match='not exact with accumulate=2'):
    tftrain.Trainer(
      tftrain.SupervisedTask.from_compiled(compiled(OwnLoss)),
      arrays,
      update=tftrain.Update(accumulate=2),
    )
  strategy = tftrain.make_strategy('mirrored')
  with strategy.scope():
    task = tftrain.SupervisedTask.from_compiled(compiled(OwnLoss))
  with pytest.raises(errors.TaskError, match='not exact with 2 replicas'):
    tftrain.Trainer(task, arrays, strategy=strategy)


def _fitted():
  model = compiled()
  model.fit(*data(), 8, 1, verbose=0)
  return model


def _scaled():
  optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
  return compiled(optimizer=optimizer)


_REFUSED = {
  'not compiled': (network, 'Functional is not compiled; call model.compile'),
  'own train_step': (
    lambda: compiled(OwnStep),
    'OwnStep has a train_step of its own, which SupervisedTask does not call; '
    'write it as `class MyTask(tftrain.Task)`',
  ),
  'own train_step and no loss, as a GAN has': (
    lambda: compiled(OwnStep, loss=None),
    'OwnStep has a train_step of its own',
  ),
  'own test_step': (lambda: compiled(OwnTest), 'OwnTest has a test_step of'),
  'own metrics': (lambda: compiled(OwnMetrics), 'give SupervisedTask metrics='),
  'no loss': (lambda: compiled(loss=None), 'is compiled without a loss'),
  'eager': (lambda: compiled(run_eagerly=True), 'compile(run_eagerly=True)'),
  'block': (lambda: compiled(steps_per_execution=4), 'steps_per_execution=4'),
  'jit': (lambda: compiled(jit_compile=True), 'compile(jit_compile=True)'),
  'clipnorm': (
    lambda: compiled(optimizer=keras.optimizers.SGD(0.1, clipnorm=1.0)),
    'SGD(clipnorm=...) clips each variable',
  ),
  'ema': (
    lambda: compiled(optimizer=keras.optimizers.SGD(0.1, use_ema=True)),
    'give tftrain.Update(ema=...)',
  ),
  'accumulation': (
    lambda: compiled(
      optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    ),
    'give tftrain.Update(accumulate=...)',
  ),
  'loss scale': (_scaled, 'brings a loss scale of its own'),
  'fitted': (_fitted, 'Adam is built already, by compile(), fit() or another'),
}


@pytest.mark.parametrize(
  ('make', 'said'), _REFUSED.values(), ids=_REFUSED.keys()
)
def test_what_compile_took_and_a_task_does_not_is_named(make, said):
  with pytest.raises(errors.TaskError) as info:
    tftrain.SupervisedTask.from_compiled(make())
  assert said in str(info.value) and '\n' not in str(info.value)


def test_the_loss_scale_that_compile_adds_is_the_one_of_update():
  keras.config.set_dtype_policy('mixed_float16')
  try:
    task = tftrain.SupervisedTask.from_compiled(compiled())
  finally:
    keras.config.set_dtype_policy('float32')
  assert type(task.optimizer) is keras.optimizers.Adam
  assert 'loss_scale' in trained(task, data())


@pytest.mark.parametrize(
  ('kind', 'said'),
  [(OwnStep, 'has a train_step of its own'), (OwnLoss, 'from_compiled(model)')],
)
def test_what_a_model_overrides_is_never_ignored(kind, said):
  with pytest.raises(errors.TaskError) as info:
    tftrain.SupervisedTask(network(kind), 'mse', 'sgd')
  assert said in str(info.value) and '\n' not in str(info.value)


def test_a_task_without_optimizer_is_evaluated_and_not_trained():
  x, y = data()
  task = tftrain.SupervisedTask(network(), 'mse', metrics=['mae'])
  found = tftrain.Evaluator(task, [(x, y)]).evaluate()
  error = task.model(x).numpy().astype('float64') - y
  penalty = sum(float(loss) for loss in task.model.losses)
  np.testing.assert_allclose(found['mae'], np.abs(error).mean(), rtol=1e-6)
  np.testing.assert_allclose(found['loss'], (error**2).mean() + penalty, 1e-6)
  for evaluated in (task, tftrain.SupervisedTask(network(), 'mse')):
    with pytest.raises(errors.TaskError, match='has no optimizer; pass one'):
      tftrain.Trainer(evaluated, tftrain.Arrays((x, y), 8))

"""Small tasks and data that several tests share; all of it is deterministic."""

import keras
import numpy as np
import tensorflow as tf

import tftrain


def arrays(examples=67, features=6, classes=3, seed=0):
  """Learnable features `[examples, features]` and labels `[examples]`."""
  random = np.random.RandomState(seed)
  x = random.normal(size=(examples, features)).astype('float32')
  y = (x @ random.normal(size=(features, classes))).argmax(-1)
  return x, y.astype('int64')


def model(features=6, classes=3, dropout=0.0, regularizer=None):
  return keras.Sequential(
    [
      keras.Input((features,)),
      keras.layers.Dense(8, 'relu', kernel_regularizer=regularizer),
      keras.layers.Dropout(dropout),
      keras.layers.Dense(classes),
    ]
  )


def supervised(optimizer=None, metrics=None, **options):
  return tftrain.SupervisedTask(
    model(**options),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer or keras.optimizers.Adam(0.01),
    {'accuracy': keras.metrics.sparse_categorical_accuracy, **(metrics or {})},
  )


def trainer(data, make=supervised, strategy='one_device', **options):
  """A Trainer of the Task that `make` makes under a strategy."""
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make()
  return tftrain.Trainer(task, data, strategy=strategy, **options)


def state_of(trainer):
  """All of a Trainer's state, as NumPy arrays."""
  return {name: value.numpy() for name, value in trainer.read_state().items()}


def assert_same_bits(one, other):
  assert one.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_array_equal(value, other[name], err_msg=name)


def assert_close(one, other, tolerance):
  assert one.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_allclose(
      value, other[name], rtol=0, atol=tolerance, err_msg=name
    )


class Weighted(tftrain.Task):
  """Linear regression with a weight for each example; squared error."""

  def loss(self, batch, training):
    x, y, weights = batch
    error = self.model(x, training=training)[:, 0] - y  # [batch]
    return tftrain.Loss(error**2, weights, absolute=tf.abs(error))


def weighted(optimizer, features=3):
  layers = [keras.Input((features,)), keras.layers.Dense(1)]
  return Weighted(keras.Sequential(layers), optimizer)


def regression(examples=37, features=3, seed=1):
  random = np.random.RandomState(seed)
  x = random.normal(size=(examples, features)).astype('float32')
  y = random.normal(size=examples).astype('float32')
  weights = random.uniform(0.1, 3.0, size=examples).astype('float32')
  return x, y, weights


def report(step, previous_step=None, **changes):
  """A Report of one step after the one before."""
  fields = {
    'source': 'train',
    'step': step,
    'previous_step': step - 1 if previous_step is None else previous_step,
    'start_step': 0,
    'last_step': step,
    **changes,
  }
  return tftrain.Report(**fields)

"""assert_learns and assert_replica_invariant: their findings and messages."""

import os
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain

DATA = tftrain.Arrays(small_tasks.arrays(), 16)

learns = tftrain.testing.assert_learns
invariant = tftrain.testing.assert_replica_invariant


def plain(kind):
  """Makes a Task of that kind with the model of the other tests."""
  return lambda: kind(small_tasks.model(), keras.optimizers.Adam(0.1))


class Classifier(tftrain.Task):
  def cross_entropy(self, batch, training):
    x, y = batch
    logits = self.model(x, training=training)
    return keras.losses.sparse_categorical_crossentropy(
      y, logits, from_logits=True
    )

  def loss(self, batch, training):
    return tftrain.Loss(self.cross_entropy(batch, training))


# assert_learns


class Flat(Classifier):
  """A loss below 0 that stays where it is."""

  def loss(self, batch, training):
    return tftrain.Loss(0.0 * self.cross_entropy(batch, training) - 10.0)


class Gain(Classifier):
  """Falls from above -1.5 to almost -2."""

  def loss(self, batch, training):
    values = self.cross_entropy(batch, training)
    return tftrain.Loss(-1.0 - tf.exp(-values))


def test_what_learns_and_what_does_not():
  first, last = learns(small_tasks.supervised, DATA)
  assert last < first / 2
  with pytest.raises(AssertionError, match='loss went from .* Try another'):
    slow = lambda: small_tasks.supervised(keras.optimizers.SGD(1e-6))
    learns(slow, DATA, steps=20)


@pytest.mark.slow
def test_a_negative_loss_has_to_fall_too():
  with pytest.raises(AssertionError, match='from -10 to -10 .* below -15'):
    learns(plain(Flat), DATA, steps=3)
  first, last = learns(plain(Gain), DATA, factor=0.8)
  assert last < 1.2 * first < 0


def test_a_metric_that_is_not_there_is_a_config_error():
  with pytest.raises(
    tftrain.errors.ConfigError,
    match="'accurcy' was not reported.* one of loss, accuracy",
  ):
    learns(small_tasks.supervised, DATA, steps=2, metric='accurcy')


# assert_replica_invariant: what holds, and what it says it left out.


@pytest.mark.slow
def test_invariance_holds_and_says_what_it_left_out():
  lines = invariant(
    lambda: small_tasks.supervised(dropout=0.3),
    DATA,
    update=tftrain.Update(clip_norm=0.1),
    accumulate=(1, 2),
  )
  assert lines == [
    '4 replicas: only 2 devices',
    'dropout: model/dropout is switched off',
  ]


class Nested(Classifier):
  """Its optimizer lies in a dictionary."""

  def __init__(self):
    super().__init__(small_tasks.model(), {'a': keras.optimizers.Adam(0.1)})

  def train_step(self, batch):
    return self.minimize(self.loss, batch, optimizer=self.optimizer['a'])


@pytest.mark.slow
def test_invariance_of_an_optimizer_in_a_dictionary_and_rates():
  update = tftrain.Update(rates={'kernel': 3.0})
  invariant(Nested, DATA, update=update, replicas=(2,), accumulate=(2,))


def normalized():
  layers = [
    keras.Input((6,)),
    keras.layers.Dense(8),
    keras.layers.BatchNormalization(),
    keras.layers.Dense(3),
  ]
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return tftrain.SupervisedTask(
    keras.Sequential(layers), loss, keras.optimizers.SGD(0.05)
  )


@pytest.mark.slow
def test_batch_normalization_holds_on_uneven_parts_if_it_is_synchronized():
  update = tftrain.Update(accumulate=2)  # not in the trial of replicas
  x, y = small_tasks.arrays()
  data = tftrain.Arrays((x + 30, y), 16)  # where variances cancel
  lines = invariant(normalized, data, update=update, replicas=(2,))
  name = 'model/sequential/batch_normalization'
  assert lines == [
    'tolerance: rounding of variances',
    f'accumulate: {name} would see micro-batches',
  ]


@pytest.mark.slow
def test_batch_normalization_that_is_not_synchronized_is_found():
  update = tftrain.Update(sync_batch_norm=False)
  with pytest.raises(AssertionError, match='Leave Update.sync_batch_norm on'):
    invariant(normalized, DATA, update=update, replicas=(2,))


class Noisy(keras.Model):
  """Noise in layers that exist once it is called."""

  def __init__(self):
    super().__init__()
    self.blur = keras.layers.GaussianNoise(0.5)
    self.attend = keras.layers.MultiHeadAttention(1, 3, dropout=0.3)
    self.end = keras.layers.Dense(3)

  def build(self, shape):
    self.attend.build([None, 2, 3], [None, 2, 3])
    self.end.build([None, 6])

  def call(self, x, training=False):
    x = tf.reshape(self.blur(x, training=training), [-1, 2, 3])
    x = self.attend(x, x, training=training)
    return self.end(tf.reshape(x, [-1, 6]))


@pytest.mark.slow
def test_noise_is_switched_off():
  make = lambda: Classifier(Noisy(), keras.optimizers.Adam(0.1))
  lines = invariant(make, DATA, replicas=(), accumulate=(2,))
  assert lines[:2] == [
    'dropout: model/gaussian_noise is switched off',
    'dropout: model/dropout is switched off',  # within the attention
  ]


@pytest.mark.slow
def test_noise_in_a_recurrent_layer_is_switched_off():
  x, y = small_tasks.arrays()
  layer = keras.layers.LSTM(4, dropout=0.2, recurrent_dropout=0.2)
  model = keras.Sequential([keras.Input((2, 3)), layer, keras.layers.Dense(3)])
  lines = invariant(
    lambda: Classifier(keras.models.clone_model(model), keras.optimizers.SGD()),
    tftrain.Arrays((x.reshape([-1, 2, 3]), y), 16),
    replicas=(2,),
    accumulate=(),
  )
  assert lines == ['dropout: model/sequential/lstm/lstm_cell is switched off']


def half(kind, dtype):
  """Makes a Task of that kind that computes in half precision."""
  layers = [
    keras.layers.Dense(8, 'relu', dtype=f'mixed_{dtype}'),
    keras.layers.Dense(3, dtype='float32'),
  ]
  model = keras.Sequential([keras.Input((6,)), *layers])
  copy = keras.models.clone_model
  return lambda: kind(copy(model), keras.optimizers.Adam(0.1))


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype', ['bfloat16', pytest.param('float16', marks=pytest.mark.slow)]
)
def test_half_precision_eases_the_tolerance(dtype):
  make = half(Classifier, dtype)
  lines = invariant(make, DATA, replicas=(), accumulate=(2,))
  assert lines == [f'tolerance: rounding of {dtype}']


class Pairs(Classifier):
  """Takes rows two by two."""

  def loss(self, batch, training):
    values = self.cross_entropy(batch, training)
    first, second = tf.unstack(tf.reshape(values, [-1, 2]), axis=1)
    return tftrain.Loss(tf.repeat(tf.abs(first - second), 2))


@pytest.mark.slow
def test_a_task_that_takes_pairs_is_not_given_an_uneven_batch():
  lines = invariant(plain(Pairs), DATA, replicas=(), accumulate=(2,))
  assert 'uneven parts: no batch of one row less can be taken' in lines


@pytest.mark.slow
def test_a_batch_of_one_row_cannot_be_cut_unevenly():
  data = tftrain.Arrays(small_tasks.arrays(), 1)
  invariant(small_tasks.supervised, data, replicas=(), accumulate=(2,))


# assert_replica_invariant: what breaks it.


class Centered(Classifier):
  """Compares each example with the mean of its batch."""

  def loss(self, batch, training):
    x, y = batch
    logits = self.model(x, training=training)
    return tftrain.Loss(
      keras.losses.sparse_categorical_crossentropy(
        y, logits - tf.reduce_mean(logits, 0), from_logits=True
      )
    )


@pytest.mark.slow
def test_a_forward_pass_that_mixes_examples_is_found():
  with pytest.raises(AssertionError, match='2 replicas: loss differs by.*cut'):
    invariant(plain(Centered), DATA)
  with pytest.raises(AssertionError, match='rounding of bfloat16 allows 0.01'):
    invariant(half(Centered, 'bfloat16'), DATA, replicas=(), accumulate=(2,))


class MeanOfMeans(Classifier):
  """Right as long as all parts have the same number of rows."""

  def loss(self, batch, training):
    values = self.cross_entropy(batch, training)
    ones = tf.ones_like(values)
    return tftrain.Loss(values, ones / tf.reduce_sum(ones))


@pytest.mark.slow
def test_a_mean_that_is_right_for_even_parts_only_is_found():
  what = 'accumulate=2, one row less: loss differs .* not averaged'
  with pytest.raises(AssertionError, match=what):
    invariant(plain(MeanOfMeans), DATA, replicas=())


@pytest.mark.slow
def test_a_mean_that_is_right_for_even_replicas_only_is_found():
  with pytest.raises(AssertionError, match='2 replicas, one row less: loss'):
    invariant(plain(MeanOfMeans), DATA)


@pytest.mark.slow
def test_a_scalar_mean_is_right_and_the_tolerance_counts():
  class Mean(Classifier):
    def loss(self, batch, training):
      return tftrain.Loss(tf.reduce_mean(self.cross_entropy(batch, training)))

  invariant(plain(Mean), DATA, replicas=(), accumulate=(2,))
  make = plain(MeanOfMeans)
  invariant(make, DATA, replicas=(), accumulate=(2,), tolerance=10.0)


class Shaken(keras.layers.Layer):
  """Noise that has no rate."""

  def __init__(self):
    super().__init__()
    self.generator = keras.random.SeedGenerator(0)

  def call(self, x, training=False):
    return x + keras.random.normal(tf.shape(x), seed=self.generator)


def test_layers_that_draw_random_numbers_are_named():
  def make():
    model = keras.Sequential([keras.Input((6,)), Shaken(), small_tasks.model()])
    return Classifier(model, keras.optimizers.Adam(0.1))

  with pytest.raises(AssertionError, match='/shaken draws random numbers'):
    invariant(make, DATA, replicas=(), accumulate=(2,))


class Never(Classifier):
  """Takes no step at first."""

  def train_step(self, batch):
    later = self.optimizer.iterations > 0
    return self.minimize(self.loss, batch, when=later)


class Alternating(Classifier):
  """Its two layers take turns."""

  def train_step(self, batch):
    first, last = self.model.layers[0], self.model.layers[-1]
    even = self.optimizer.iterations % 2 == 0
    take = self.minimize
    take(self.loss, batch, last.trainable_variables, when=~even, name='last')
    return take(self.loss, batch, first.trainable_variables, when=even)


def test_a_step_that_moves_nothing_compares_nothing():
  with pytest.raises(AssertionError, match='moved no weight.*`when=` False'):
    invariant(plain(Never), DATA)
  lines = invariant(plain(Alternating), DATA, replicas=(), accumulate=())
  kernel = 'model/sequential/dense_1/kernel'
  assert lines == [f'weights: {kernel}, {kernel[:-6]}bias did not move']


@pytest.mark.slow
def test_invariance_holds_on_four_devices():
  """In a process of its own: these have two."""
  program = """
from tftrain import distribute, testing, Arrays, Update
distribute.set_local_devices(4)
from tests.support import small_tasks
data = Arrays(small_tasks.arrays(), 16)
lines = testing.assert_replica_invariant(small_tasks.supervised, data)
assert lines == [], lines
"""
  subprocess.run(
    [sys.executable, '-c', program], check=True, timeout=120, env=os.environ
  )

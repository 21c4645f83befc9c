"""assert_learns and assert_replica_invariant: what they find, what they say."""

import os
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from tests import cases
import tftrain


def cross_entropy(y, logits):
  return keras.losses.sparse_categorical_crossentropy(
    y, logits, from_logits=True
  )


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


def test_invariance_holds_and_says_what_it_left_out():
  lines = tftrain.testing.assert_replica_invariant(
    lambda: cases.supervised(dropout=0.3),
    tftrain.Arrays(cases.arrays(), 16),
    update=tftrain.Update(clip_norm=0.1),
  )
  assert lines == [
    '4 replicas: there are only 2 devices',
    'dropout: model/dropout is switched off',
  ]
  lines = tftrain.testing.assert_replica_invariant(
    normalized, tftrain.Arrays(cases.arrays(), 16), replicas=(1, 2)
  )
  assert lines[-1] == (
    'accumulate: batch normalization sees micro-batches '
    '(model/sequential/batch_normalization)'
  )


class Centered(tftrain.Task):
  """Compares each example with the mean of its batch."""

  def loss(self, batch, training):
    x, y = batch
    logits = self.model(x, training=training)
    return tftrain.Loss(cross_entropy(y, logits - tf.reduce_mean(logits, 0)))

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


def test_what_breaks_invariance_is_named():
  data = tftrain.Arrays(cases.arrays(), 16)
  check = tftrain.testing.assert_replica_invariant
  with pytest.raises(AssertionError, match='2 replicas: loss differs by.*cut'):
    check(of(Centered), data)
  with pytest.raises(AssertionError, match='leave Update.sync_batch_norm on'):
    check(normalized, data, update=tftrain.Update(sync_batch_norm=False))


def test_what_learns_and_what_does_not():
  data = tftrain.Arrays(cases.arrays(), 16)
  first, last = tftrain.testing.assert_learns(cases.supervised, data)
  assert last < first / 2
  with pytest.raises(AssertionError, match='loss went from .* Try another'):
    tftrain.testing.assert_learns(
      lambda: cases.supervised(keras.optimizers.SGD(1e-6)), data, steps=20
    )


class Nested(tftrain.Task):
  """Its optimizer lies in a dictionary."""

  def __init__(self):
    super().__init__(cases.model(), {'a': keras.optimizers.Adam(0.1)})

  def train_step(self, batch):
    return self.minimize(self.loss, batch, optimizer=self.optimizer['a'])


def test_invariance_of_an_optimizer_in_a_dictionary_and_rates():
  tftrain.testing.assert_replica_invariant(
    Nested,
    tftrain.Arrays(cases.arrays(), 16),
    update=tftrain.Update(rates={'kernel': 3.0}),
    accumulate=(1, 2),
  )


@pytest.mark.slow
def test_invariance_holds_on_four_devices():
  """In a process of its own: these have two."""
  program = """
from tftrain import strategies, testing, Arrays, Update
strategies.set_local_devices(4)
from tests import cases
data = Arrays(cases.arrays(), 16)
lines = testing.assert_replica_invariant(cases.supervised, data)
assert lines == [], lines
"""
  subprocess.run(
    [sys.executable, '-c', program], check=True, timeout=120, env=os.environ
  )

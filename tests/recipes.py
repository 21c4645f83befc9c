"""What the gin files of the tests refer to."""

import gin
import keras
import tensorflow as tf

from tests import cases
import tftrain
from tftrain import inputs


@gin.register(module='recipes')
def make_task(optimizer=keras.optimizers.SGD, width=8):
  del width
  return cases.supervised(optimizer())


@gin.register(module='recipes')
def train_data(batch_size=8):
  return tftrain.Arrays(cases.arrays(), batch_size)


@gin.register(module='recipes')
def test_data(batch_size=8):
  return tftrain.Arrays(cases.arrays(seed=1), batch_size, training=False)


@gin.register(module='recipes')
def make_normalized_task(rate=0.01):
  """With what has to see the whole batch, and a metric that is no mean."""
  layers = [keras.Input((6,)), keras.layers.Dense(8)]
  layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
  return tftrain.SupervisedTask(
    keras.Sequential([*layers, keras.layers.Dense(3)]),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.AdamW(rate),
    {'accuracy': keras.metrics.SparseCategoricalAccuracy()},
  )


@gin.register(module='recipes')
def examples(training=True, filtered=False):
  """Examples with a noise of their own; the last batch has 1 of 65."""

  def noisy(pair, seed):
    x, y = pair
    return x + 0.1 * tf.random.stateless_normal([6], seed), y

  x, y = cases.arrays(seed=0 if training else 1)
  if not training:
    x, y = x[:65], y[:65]
  return inputs.Examples(
    inputs.InMemory((x, y)), 8, training=training, map=noisy,
    filter=(lambda pair: pair[0][0] > -9) if filtered else None,
  )  # fmt: skip

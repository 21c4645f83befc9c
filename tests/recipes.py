"""What the gin files of the tests refer to."""

import gin
import keras

from tests import cases
import tftrain


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

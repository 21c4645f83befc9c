"""A Task with a loss that is NaN at one row."""

import inspect

import gin
import keras
import numpy as np
import tensorflow as tf

from tests.support import small_tasks
import tftrain

BAD_ROW = 41


class Logarithm(tftrain.SupervisedTask):
  """Takes the logarithm of what it should not."""

  def loss(self, batch, training):
    x, y = batch
    return super().loss((tf.math.log(x), y), training)


LINE = inspect.getsourcelines(Logarithm.loss)[1] + 2


@gin.register(module='nan_task')
def make_task():
  layers = keras.layers
  model = keras.Sequential(
    [
      keras.Input((6,)),
      layers.Dense(8, 'tanh'),  # a ReLU makes 0 of NaN on some CPUs
      layers.BatchNormalization(),
      layers.Dropout(0.5),
      layers.Dense(3),
    ]
  )
  return Logarithm(
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(0.01),
  )


def arrays(bad=0.0):
  x, y = small_tasks.arrays(96)
  x = np.abs(x) + 0.1
  x[BAD_ROW, 3] = bad
  return x, y


@gin.register(module='nan_task')
def data():
  return tftrain.Arrays(arrays(-1.0), 8)

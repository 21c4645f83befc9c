"""Handwritten digits: 1,797 real images of 8x8 that ship with scikit-learn."""

from collections.abc import Callable

import gin
import keras
import numpy as np
from sklearn import datasets

import tftrain


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns images `[examples, 64]` in [0, 1] and labels `[examples]`.

  Every fifth image is in the test split, independent of the seed.
  """
  images, labels = datasets.load_digits(return_X_y=True)
  held_out = np.arange(len(labels)) % 5 == 4
  chosen = held_out if split == 'test' else ~held_out
  return (images[chosen] / 16).astype('float32'), labels[chosen].astype('int64')


@gin.register(module='digits')
def train_data(batch_size: int = 32) -> tftrain.Arrays:
  return tftrain.Arrays(load('train'), batch_size)


@gin.register(module='digits')
def test_data(batch_size: int = 100) -> tftrain.Arrays:
  return tftrain.Arrays(load('test'), batch_size, training=False)


@gin.register(module='digits')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  filters: int = 32,
  dropout: float = 0.3,
) -> tftrain.SupervisedTask:
  layers = keras.layers
  model = keras.Sequential(
    [
      keras.Input((64,)),
      layers.Reshape((8, 8, 1)),
      layers.Conv2D(filters, 3, activation='relu'),
      layers.Conv2D(2 * filters, 3, activation='relu'),
      layers.MaxPooling2D(),
      layers.Flatten(),
      layers.Dropout(dropout),
      layers.Dense(10),
    ]
  )
  return tftrain.SupervisedTask(
    model,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=optimizer(),
    metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
  )

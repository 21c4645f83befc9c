"""Image classification from an image folder with one directory per class.

The model tells which of two photographs a tile was cut from. The photographs
ship with scikit-learn. Their tiles are written if missing.
"""

from collections.abc import Callable
import os
import pathlib
import tempfile

import gin
import keras
from sklearn import datasets
import tensorflow as tf

import tftrain

SIZE = 16
DIRECTORY = f'{tempfile.gettempdir()}/tftrain_tiles'


def tiles(directory: str) -> tftrain.data.ImageFolder:
  """Returns all tiles, `{'image': uint8 [16, 16, 1], 'label': int64}`."""
  if not os.path.exists(directory):
    written = f'{directory}.part'  # renamed once it is complete
    write(pathlib.Path(written))
    os.rename(written, directory)
  return tftrain.data.ImageFolder(directory, channels=1)  # colour gives it away


def write(folder: pathlib.Path) -> None:
  """Cuts the photographs into tiles, `<folder>/<photograph>/<y>_<x>.png`."""
  found = datasets.load_sample_images()
  for path, image in zip(found.filenames, found.images, strict=True):
    named = folder / pathlib.Path(path).stem
    named.mkdir(parents=True, exist_ok=True)
    height, width, _ = image.shape
    for y in range(0, height - SIZE + 1, SIZE):
      for x in range(0, width - SIZE + 1, SIZE):
        tile = tf.io.encode_png(image[y : y + SIZE, x : x + SIZE])
        tf.io.write_file(str(named / f'{y:03d}_{x:03d}.png'), tile)


def flipped(example, seed):
  """Flips a random half of the examples horizontally, redrawn each epoch."""
  image = tf.image.stateless_random_flip_left_right(example['image'], seed)
  return {**example, 'image': image}


def scaled(batch):
  images, labels = batch
  return tf.cast(images, tf.float32) / 255, labels


@gin.register(module='tiles')
def train_data(
  batch_size: int = 32, directory: str = DIRECTORY, holdout: float = 0.25
) -> tftrain.data.Examples:
  return tftrain.data.Examples(
    tiles(directory),
    batch_size,
    holdout=holdout,
    cache=True,  # decoded once
    map=flipped,
    select=('image', 'label'),
    map_batch=scaled,
  )


@gin.register(module='tiles')
def test_data(
  batch_size: int = 500, directory: str = DIRECTORY, holdout: float = 0.25
) -> tftrain.data.Examples:
  return tftrain.data.Examples(
    tiles(directory),
    batch_size,
    training=False,
    holdout=holdout,
    subset='holdout',
    select=('image', 'label'),
    map_batch=scaled,
  )


class Tiles(tftrain.SupervisedTask):
  """Classifies tiles and shows those with the highest loss."""

  def artifacts(self, batch):
    images, labels = batch
    logits = self.model(images, training=False)  # [batch, 2]
    surprise = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    chosen = tf.argsort(surprise, direction='DESCENDING')[:8]
    shown = tf.image.resize(tf.gather(images, chosen), (64, 64), 'nearest')
    return {'hardest': shown}


@gin.register(module='tiles')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  filters: int = 16,
) -> Tiles:
  layers = keras.layers
  model = keras.Sequential(
    [
      keras.Input((SIZE, SIZE, 1)),
      layers.Conv2D(filters, 3, strides=2, activation='relu'),
      layers.Conv2D(2 * filters, 3, strides=2, activation='relu'),
      layers.GlobalAveragePooling2D(),
      layers.Dense(2),
    ]
  )
  return Tiles(
    model,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=optimizer(),
    metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
  )

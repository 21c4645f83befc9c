"""Handwritten digits from TFRecord files, which are written if missing."""

from collections.abc import Callable
import pathlib
import tempfile

import gin
import keras
import tensorflow as tf

from examples import digits
import tftrain

DIRECTORY = f'{tempfile.gettempdir()}/tftrain_digit_records'


def records(split: str, directory: str) -> tftrain.data.TFRecords:
  """Returns a split, `{'image': uint8 [8, 8, 1], 'label': int64}`."""
  folder = pathlib.Path(directory) / split
  # `write_records` writes features.json last, so it marks a complete split.
  if not (folder / 'features.json').exists():
    images, labels = digits.load(split)
    images = (images * 16).astype('uint8').reshape((-1, 8, 8, 1))
    tftrain.data.write_records(
      folder / 'digits',
      (
        {'image': image, 'label': label}
        for image, label in zip(images, labels, strict=True)
      ),
      shards=4,
    )
  return tftrain.data.TFRecords(folder / 'digits-*')


def scaled(batch):
  """Scales a whole batch: much faster than one example at a time."""
  images, labels = batch
  return tf.cast(images, tf.float32) / 16, labels


@gin.register(module='digit_records')
def data(
  batch_size: int = 32, training: bool = True, directory: str = DIRECTORY
) -> tftrain.data.Examples:
  return tftrain.data.Examples(
    records('train' if training else 'test', directory),
    batch_size,
    training=training,
    select=('image', 'label'),
    map_batch=scaled,
  )


class Digits(tftrain.SupervisedTask):
  """Classifies digits and shows the images with the least confident answers."""

  def serve(self, images):
    return tf.nn.softmax(self.model(images, training=False))

  def artifacts(self, batch):
    images, labels = batch
    found = self.serve(images)  # [batch, digits]
    sure = tf.gather(found, labels, batch_dims=1)  # of the label
    chosen = tf.argsort(sure)[:8]
    lines = [
      f'| {labels[i]} | {tf.argmax(found[i])} | {sure[i]:.2f} |' for i in chosen
    ]
    head = ['| digit | answer | probability of the digit |', '|---|---|---|']
    shown = tf.image.resize(tf.gather(images, chosen), (64, 64), 'nearest')
    return {'least_sure': shown, 'answers': '\n'.join([*head, *lines])}


@gin.register(module='digit_records')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  filters: int = 16,
) -> Digits:
  layers = keras.layers
  model = keras.Sequential(
    [
      keras.Input((8, 8, 1)),
      layers.Conv2D(filters, 3, activation='relu'),
      layers.Conv2D(2 * filters, 3, activation='relu'),
      layers.Flatten(),
      layers.Dense(10),
    ]
  )
  return Digits(
    model,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=optimizer(),
    metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
  )

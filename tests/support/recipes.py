"""Tasks, data and Actions that gin files of the tests refer to."""

import json
import os

import gin
import keras
import numpy as np
import tensorflow as tf

from tests.support import small_tasks
import tftrain


@gin.register(module='recipes')
def make_task(optimizer=keras.optimizers.SGD, width=8):
  del width
  return small_tasks.supervised(optimizer())


@gin.register(module='recipes')
def train_data(batch_size=8):
  return tftrain.Arrays(small_tasks.arrays(), batch_size)


@gin.register(module='recipes')
def test_data(batch_size=8):
  return tftrain.Arrays(small_tasks.arrays(seed=1), batch_size, training=False)


@gin.register(module='recipes')
def make_normalized_task(rate=0.01, width=8, kind=tftrain.SupervisedTask):
  """With what has to see the whole batch, and a metric that is no mean."""
  layers = [keras.Input((6,)), keras.layers.Dense(width)]
  layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
  return kind(
    keras.Sequential([*layers, keras.layers.Dense(3)]),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.AdamW(rate),
    {'accuracy': keras.metrics.SparseCategoricalAccuracy()},
  )


class Shown(tftrain.SupervisedTask):
  """Shows its loss in each step that is reported."""

  def loss(self, batch, training):
    found = super().loss(batch, training)
    tf.summary.scalar('shown', tf.reduce_mean(found.values))
    return found


@gin.register(module='recipes')
def shown_kind():
  return Shown


@gin.register(module='recipes')
def bad_row(batch=13, row=7, batch_size=8, value=np.nan):
  """Batches one row of one of which is not finite."""
  x, y = small_tasks.arrays()
  index = np.arange(64 * batch_size) % len(x)
  features = x[index].copy()
  features[batch * batch_size + row] = value
  return tftrain.data.InMemory((features, y[index]))


@gin.register(module='recipes')
def uneven_data(batches=(30, 30)):
  """So many batches on each worker, which nobody could know before."""
  told = json.loads(os.environ.get('TF_CONFIG', '{"task": {"index": 0}}'))
  count = batches[told['task']['index']]
  x, y = small_tasks.arrays()

  def make():
    batches = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(8)
    return batches.take(count).filter(lambda x, y: True)

  return tftrain.data.DatasetPipeline(make, repeat=False)


@gin.register(module='recipes')
def other_data(examples=(67, 67), training=True):
  """So many examples on each worker."""
  told = json.loads(os.environ['TF_CONFIG'])
  x, y = small_tasks.arrays(max(examples))
  count = examples[told['task']['index']]
  return tftrain.Arrays((x[:count], y[:count]), 8, training=training)


@gin.register(module='recipes')
def breaking_data(worker=1, batch=15):
  """What cannot be read from some batch on, on one worker."""
  told = json.loads(os.environ['TF_CONFIG'])
  x, y = small_tasks.arrays()

  def make():
    batches = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(8)
    if told['task']['index'] != worker:
      return batches

    def broken(number, rows):
      check = tf.debugging.Assert(number < batch, ['the disk is gone'])
      with tf.control_dependencies([check]):
        return tf.nest.map_structure(tf.identity, rows)

    return batches.enumerate().map(broken)

  return tftrain.data.DatasetPipeline(make, resume='skip')


class Breaking:
  """An Action that fails at a step."""

  def __init__(self, step):
    self._step = step

  def __call__(self, report):
    if report.step == self._step:
      raise OSError(28, 'No space left on device')


@gin.register(module='recipes')
def breaking_action(step=30):
  return Breaking(step)


@gin.register(module='recipes')
def examples(training=True, filtered=False):
  """Examples with a noise of their own; the last batch has 1 of 65."""

  def noisy(pair, seed):
    x, y = pair
    return x + 0.1 * tf.random.stateless_normal([6], seed), y

  x, y = small_tasks.arrays(seed=0 if training else 1)
  if not training:
    x, y = x[:65], y[:65]
  return tftrain.data.Examples(
    tftrain.data.InMemory((x, y)), 8, training=training, map=noisy,
    filter=(lambda pair: pair[0][0] > -9) if filtered else None,
  )  # fmt: skip

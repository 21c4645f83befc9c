"""Focal loss with class weights: a custom loss for imbalanced classes.

Three digits are rare in the training data. Two things help: examples of rare
classes weigh more, and examples that are already classified correctly count
less (Lin et al. 2017).
"""

from collections.abc import Callable
from collections.abc import Sequence

import gin
import keras
import numpy as np
import tensorflow as tf

from examples import digits
import tftrain

RARE = (1, 8, 9)


class Focal(tftrain.Task):
  """The focal loss, with a weight for each class."""

  def __init__(
    self,
    model: keras.Model,  # images [batch, 64] -> logits [batch, classes]
    optimizer: keras.Optimizer,
    class_weights: Sequence[float],
    gamma: float = 2.0,  # 0 is cross entropy
  ):
    super().__init__(model, optimizer)
    self._class_weights = list(class_weights)
    self._gamma = gamma

  def loss(self, batch, training):
    images, labels = batch
    logits = self.model(images, training=training)  # [batch, classes]
    surprise = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    values = (1 - tf.exp(-surprise)) ** self._gamma * surprise  # [batch]
    right = tf.equal(tf.argmax(logits, axis=-1), labels)  # [batch]
    # Evaluation weighs all digits equally. In training the sum is divided by
    # the weights of the global batch, on any number of replicas.
    weights = tf.gather(self._class_weights, labels) if training else None
    return tftrain.Loss(values, weights, accuracy=right)

  def serve(self, images):
    return tf.nn.softmax(self.model(images, training=False))

  def artifacts(self, batch):
    """Returns the confusion matrix: a row per digit, a column per answer."""
    images, labels = batch
    probabilities = self.serve(images)  # [batch, classes]
    answers = tf.argmax(probabilities, axis=-1)
    classes = probabilities.shape[-1]
    counts = tf.math.confusion_matrix(labels, answers, classes, dtype='float32')
    shares = tf.math.divide_no_nan(counts, tf.reduce_sum(counts, 1)[:, None])
    found = [
      f'| {digit} | {shares[digit, digit]:.2f} |' for digit in range(classes)
    ]
    table = '\n'.join(['| digit | recall |', '|---|---|', *found])
    return {'confusion': shares[None, :, :, None], 'recall': table}


def load(kept: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns the training images with only a share of the rare digits."""
  images, labels = digits.load('train')
  drawn = np.random.default_rng(0).uniform(size=len(labels)) < kept
  chosen = drawn | ~np.isin(labels, RARE)
  return images[chosen], labels[chosen]


@gin.register(module='focal')
def train_data(kept: float = 0.1, batch_size: int = 32) -> tftrain.Arrays:
  return tftrain.Arrays(load(kept), batch_size)


@gin.register(module='focal')
def rare_data() -> tftrain.Arrays:
  images, labels = digits.load('test')
  rare = np.isin(labels, RARE)
  rows = (images[rare], labels[rare])
  return tftrain.Arrays(rows, batch_size=100, training=False)


@gin.register(module='focal')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  gamma: float = 2.0,
  balance: float = 1.0,  # 0: all classes weigh the same
  kept: float = 0.1,
  units: int = 64,
) -> Focal:
  _, labels = load(kept)
  counts = np.bincount(labels)  # [classes]
  layers = [keras.layers.Dense(units, 'relu'), keras.layers.Dense(len(counts))]
  return Focal(
    keras.Sequential([keras.Input((64,)), *layers]),
    optimizer(),
    class_weights=(counts.mean() / counts) ** balance,
    gamma=gamma,
  )

"""What benchmarks/steps.py trains: models, data and losses, in each style.

A Workload makes its model as a tftrain Task, as a compiled Keras model, and as
hand-written steps. All start from the same weights.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import keras
import numpy as np
from sklearn import datasets
import tensorflow as tf

import tftrain

Scalars = Mapping[str, float]
Batch = tuple[tf.Tensor, tf.Tensor]
"""Images and labels."""


def make_optimizer() -> keras.Optimizer:
  return keras.optimizers.Adam(1e-3)


def make_loss() -> keras.Loss:
  return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Workload:
  """A classifier of digits, its data and its number of steps."""

  title: str
  layers: Callable[[], list[keras.Layer]]
  shape: tuple[int, ...]
  batch_size: int
  steps: int

  def make_model(self) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(self.shape), *self.layers()])

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns all 1,797 digits, `[examples, *shape]` in [0, 1], and labels."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype('float32').reshape((-1, *self.shape))
    return images, labels.astype('int64')

  def dataset(self) -> tf.data.Dataset:
    """Returns the usual tf.data input, with static shapes."""
    images, labels = self.arrays()
    return (
      tf.data.Dataset.from_tensor_slices((images, labels))
      .shuffle(len(labels))
      .repeat()
      .batch(self.batch_size, drop_remainder=True)
      .prefetch(tf.data.AUTOTUNE)
    )

  def make_task(self) -> tftrain.Task:
    return tftrain.SupervisedTask(
      self.make_model(),
      loss=make_loss(),
      optimizer=make_optimizer(),
      metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
    )

  def compiled(self, **options: Any) -> keras.Model:
    """Returns a model for `fit`; `options` are those of `compile`."""
    model = self.make_model()
    model.compile(
      optimizer=make_optimizer(),
      loss=make_loss(),
      metrics=['accuracy'],
      **options,
    )
    return model

  def lean_step(self) -> 'LeanStep':
    return LeanStep(self)

  def hand_step(self) -> 'HandStep':
    return HandStep(self)

  def reported(self, scalars: Scalars) -> Scalars:
    """Returns the scalars of a Report under the names of the others."""
    return scalars


# Hand-written steps.


def descend(
  tape: tf.GradientTape,
  loss: tf.Tensor,
  model: keras.Model,
  optimizer: keras.Optimizer,
) -> None:
  """Applies the gradients of `loss` to the weights of `model`."""
  variables = model.trainable_variables
  gradients = tape.gradient(loss, variables)
  optimizer.apply_gradients(zip(gradients, variables, strict=True))


class LeanStep:
  """A step without metrics: it returns the means of its batch."""

  names: Sequence[str] = ('loss', 'accuracy')

  def __init__(self, workload: Workload):
    self.model = workload.make_model()
    self.optimizer = make_optimizer()
    self.optimizer.build(self.model.trainable_variables)

  def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Trains on one batch; returns scalars in the order of `names`."""
    images, labels = batch
    with tf.GradientTape() as tape:
      logits = self.model(images, training=True)
      loss = tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
      )
    descend(tape, loss, self.model, self.optimizer)
    hits = tf.argmax(logits, -1) == labels
    return loss, tf.reduce_mean(tf.cast(hits, tf.float32))


class Metrics:
  """Keras metrics by name, read and reset together."""

  def __init__(self, metrics: Mapping[str, keras.Metric]):
    self._metrics = metrics

  def results(self) -> dict[str, tf.Tensor]:
    return {name: metric.result() for name, metric in self._metrics.items()}

  def reset(self) -> None:
    for metric in self._metrics.values():
      metric.reset_state()

  def read(self) -> Scalars:
    scalars = {name: float(value) for name, value in self.results().items()}
    self.reset()
    return scalars


class HandStep(Metrics):
  """A step with Keras metrics, as one writes it."""

  def __init__(self, workload: Workload):
    super().__init__(
      {
        'loss': keras.metrics.Mean(),
        'accuracy': keras.metrics.SparseCategoricalAccuracy(),
      }
    )
    self.model = workload.make_model()
    self.optimizer = make_optimizer()
    self.optimizer.build(self.model.trainable_variables)
    self._loss = make_loss()

  def take(self, batch: Batch) -> None:
    """Trains on one batch."""
    images, labels = batch
    with tf.GradientTape() as tape:
      logits = self.model(images, training=True)
      loss = self._loss(labels, logits)
    descend(tape, loss, self.model, self.optimizer)
    self._metrics['loss'].update_state(loss)
    self._metrics['accuracy'].update_state(labels, logits)


# Classifiers.


def mlp_layers() -> list[keras.Layer]:
  return [
    keras.layers.Dense(64, activation='relu'),
    keras.layers.Dense(10),
  ]


def batchnorm_layers() -> list[keras.Layer]:
  return [
    keras.layers.Dense(64),
    keras.layers.BatchNormalization(),
    keras.layers.ReLU(),
    keras.layers.Dense(10),
  ]


def convnet_layers() -> list[keras.Layer]:
  return [
    keras.layers.Conv2D(16, 3, activation='relu'),
    keras.layers.Conv2D(32, 3, activation='relu'),
    keras.layers.Flatten(),
    keras.layers.Dense(10),
  ]


def lstm_layers() -> list[keras.Layer]:
  return [keras.layers.LSTM(32), keras.layers.Dense(10)]


def gru_layers() -> list[keras.Layer]:
  return [keras.layers.GRU(32), keras.layers.Dense(10)]


def dense(count: int, width: int, steps: int) -> Workload:
  """Returns a deep MLP: `count` hidden layers of `width` units."""

  def layers() -> list[keras.Layer]:
    hidden = [
      keras.layers.Dense(width, 'relu', kernel_initializer='he_normal')
      for _ in range(count)
    ]
    return [*hidden, keras.layers.Dense(10)]

  title = f'{count} dense of {width}'
  return Workload(title, layers, (64,), batch_size=32, steps=steps)


def resnet_layers() -> list[keras.Layer]:
  return [
    keras.layers.Conv2D(16, 3, padding='same'),
    residual_block((8, 8, 16)),
    residual_block((8, 8, 16)),
    keras.layers.GlobalAveragePooling2D(),
    keras.layers.Dense(10),
  ]


def residual_block(shape: tuple[int, ...]) -> keras.Model:
  """Returns two normalized convolutions and what goes past them."""
  here = keras.Input(shape)
  x = here
  for _ in range(2):
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Conv2D(shape[-1], 3, padding='same', use_bias=False)(x)
  return keras.Model(here, here + x)


def transformer(
  title: str,
  shape: tuple[int, int],
  width: int,
  dropout: float = 0.0,
  steps: int = 300,
) -> Workload:
  """Returns two blocks over the rows of a digit, or over its pixels.

  Args:
    title: Its name.
    shape: Length of the sequence, and numbers in each place.
    width: Numbers in each place within the blocks.
    dropout: Rate of dropout.
    steps: Steps in a window.
  """

  def layers() -> list[keras.Layer]:
    inside = shape[0], width
    return [
      # The bias is also the embedding of the position.
      keras.layers.EinsumDense('abc,cd->abd', inside, bias_axes='bd'),
      transformer_block(inside, dropout),
      transformer_block(inside, dropout),
      keras.layers.GlobalAveragePooling1D(),
      keras.layers.Dense(10),
    ]

  return Workload(title, layers, shape, batch_size=32, steps=steps)


def transformer_block(shape: tuple[int, int], dropout: float) -> keras.Model:
  """Returns attention of 2 heads and an MLP, `[batch, length, width]`."""
  width = shape[-1]

  def dropped(x: Any) -> Any:
    return keras.layers.Dropout(dropout)(x) if dropout else x

  here = keras.Input(shape)
  x = keras.layers.LayerNormalization()(here)
  x = keras.layers.MultiHeadAttention(2, width // 2, dropout=dropout)(x, x)
  between = here + dropped(x)
  x = keras.layers.LayerNormalization()(between)
  x = keras.layers.Dense(2 * width, activation='relu')(x)
  x = keras.layers.Dense(width)(x)
  return keras.Model(here, between + dropped(x))


# The GAN.


class Players:
  """A generator and a critic of digits, with their optimizers and losses."""

  def __init__(self) -> None:
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense
    self.generator = keras.Sequential(
      [keras.Input((16,)), layer(64, 'relu'), layer(64, 'sigmoid')]
    )
    self.critic = keras.Sequential(
      [keras.Input((64,)), layer(64, 'leaky_relu'), layer(1)]
    )
    self.generator_optimizer = make_optimizer()
    self.critic_optimizer = make_optimizer()
    self.seeds = keras.random.SeedGenerator(0)

  def build_optimizers(self) -> None:
    """Creates their variables, outside the compiled step."""
    self.generator_optimizer.build(self.generator.trainable_variables)
    self.critic_optimizer.build(self.critic.trainable_variables)

  def critic_losses(self, images: tf.Tensor) -> tf.Tensor:
    """Returns the logistic loss of the critic, `[batch]`."""
    fake = self.critic(self._draw(images), training=True)
    real = self.critic(images, training=True)
    return (tf.nn.softplus(fake) + tf.nn.softplus(-real))[:, 0]

  def generator_losses(self, images: tf.Tensor) -> tf.Tensor:
    """Returns the loss of as many drawn digits, `[batch]`."""
    fake = self.critic(self._draw(images), training=True)
    return tf.nn.softplus(-fake)[:, 0]

  def _draw(self, images: tf.Tensor) -> tf.Tensor:
    noise = keras.random.normal((tf.shape(images)[0], 16), seed=self.seeds)
    return self.generator(noise, training=True)

  def train(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Trains both by hand; returns the mean losses, the generator's first."""
    with tf.GradientTape() as tape:
      critic_loss = tf.reduce_mean(self.critic_losses(images))
    descend(tape, critic_loss, self.critic, self.critic_optimizer)
    with tf.GradientTape() as tape:
      loss = tf.reduce_mean(self.generator_losses(images))
    descend(tape, loss, self.generator, self.generator_optimizer)
    return loss, critic_loss


class GanTask(tftrain.Task):
  """The GAN as a Task of two `minimize` calls."""

  def __init__(self) -> None:
    super().__init__()
    self._players = players = Players()
    self.generator, self.critic = players.generator, players.critic
    self.generator_optimizer = players.generator_optimizer
    self.critic_optimizer = players.critic_optimizer
    self.seeds = players.seeds

  def train_step(self, batch: Any) -> Any:
    self.minimize(
      self.loss, batch, self.critic, self.critic_optimizer, name='critic'
    )
    return self.minimize(
      self.generator_loss,
      batch,
      self.generator,
      self.generator_optimizer,
      name='generator',
    )

  def loss(self, batch: Any, training: bool) -> tftrain.Loss:
    del training
    return tftrain.Loss(self._players.critic_losses(batch[0]))

  def generator_loss(self, batch: Any, training: bool) -> tftrain.Loss:
    del training
    return tftrain.Loss(self._players.generator_losses(batch[0]))


class GanModel(keras.Model):
  """The GAN for `fit`, as the Keras guide writes it."""

  def __init__(self) -> None:
    super().__init__()
    self._players = players = Players()
    players.build_optimizers()
    self.generator, self.critic = players.generator, players.critic
    self.means = [keras.metrics.Mean('loss'), keras.metrics.Mean('critic')]
    self.built = True

  def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
    for mean, value in zip(
      self.means, self._players.train(batch[0]), strict=True
    ):
      mean.update_state(value)
    return {mean.name: mean.result() for mean in self.means}

  @property
  def metrics(self) -> list[keras.Metric]:
    return self.means


class LeanGanStep(LeanStep):
  """The step of the GAN without metrics."""

  names = ('loss', 'critic')

  def __init__(self) -> None:
    self._players = Players()
    self._players.build_optimizers()

  def __call__(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    return self._players.train(batch[0])


class HandGanStep(Metrics):
  """The step of the GAN with Keras metrics."""

  def __init__(self) -> None:
    super().__init__(
      {'loss': keras.metrics.Mean(), 'critic': keras.metrics.Mean()}
    )
    self._players = Players()
    self._players.build_optimizers()

  def take(self, batch: Batch) -> None:
    """Trains on one batch."""
    values = self._players.train(batch[0])
    for metric, value in zip(self._metrics.values(), values, strict=True):
      metric.update_state(value)


class GanWorkload(Workload):
  """A GAN of digits; `loss` is the generator's."""

  def make_model(self) -> keras.Model:
    return Players().generator

  def make_task(self) -> tftrain.Task:
    return GanTask()

  def compiled(self, **options: Any) -> keras.Model:
    model = GanModel()
    model.compile(**options)
    return model

  def lean_step(self) -> LeanStep:
    return LeanGanStep()

  def hand_step(self) -> Any:
    return HandGanStep()

  def reported(self, scalars: Scalars) -> Scalars:
    return {
      'loss': scalars['generator/loss'],
      'critic': scalars['critic/loss'],
    }


WORKLOADS: Mapping[str, Workload] = {
  'mlp': Workload('mlp 64-64-10', mlp_layers, (64,), 32, 2000),
  'deep': dense(20, 64, steps=500),
  'batchnorm': Workload(
    'mlp 64-64-10, batchnorm', batchnorm_layers, (64,), 32, 2000
  ),
  'convnet': Workload('convnet 16-32-10', convnet_layers, (8, 8, 1), 64, 500),
  'lstm': Workload('lstm 32-10', lstm_layers, (8, 8), 32, 500),
  'gru': Workload('gru 32-10', gru_layers, (8, 8), 32, 500),
  'transformer': transformer('transformer 2x32', (8, 8), 32),
  'transformer_dropout': transformer(
    'transformer 2x32, dropout 0.1', (8, 8), 32, dropout=0.1
  ),
  'transformer_wide': transformer(
    'transformer 2x128, length 64', (64, 1), 128, steps=100
  ),
  'resnet': Workload('resnet 2x16', resnet_layers, (8, 8, 1), 64, 200),
  'gan': GanWorkload('gan 16-64-64, 64-64-1', list, (64,), 32, 1000),
}

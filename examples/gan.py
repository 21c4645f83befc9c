"""A GAN that draws digits: two models, two optimizers, one `train_step`.

A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017). All losses,
including the penalty, are per example, so the Task is correct on any number of
replicas.
"""

from collections.abc import Callable

import gin
import keras
import tensorflow as tf

import tftrain


@gin.register(module='gan')
class Gan(tftrain.Task):
  """A generator of images and a critic that tells them from real ones."""

  def __init__(
    self,
    generator_optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
    critic_optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
    critic_steps: int = 2,
    noise: int = 16,
    units: int = 128,
  ):
    super().__init__()
    dense = keras.layers.Dense
    layers = [dense(units, 'relu'), dense(units, 'relu'), dense(64, 'sigmoid')]
    self.generator = keras.Sequential([keras.Input((noise,)), *layers])
    # A constant added to every score cancels, so the last layer has no bias.
    layers = [dense(units, 'leaky_relu'), dense(units, 'leaky_relu')]
    layers += [dense(1, use_bias=False)]
    self.critic = keras.Sequential([keras.Input((64,)), *layers])
    self.generator_optimizer = generator_optimizer()
    self.critic_optimizer = critic_optimizer()
    # As an attribute, the generator's state is in checkpoints: a resumed run
    # continues the same noise sequence.
    self.seeds = keras.random.SeedGenerator()
    self._critic_steps = critic_steps

  def train_step(self, batch):
    self.minimize(
      self.critic_loss,
      batch,
      variables=self.critic.trainable_variables,
      optimizer=self.critic_optimizer,
      name='critic',  # reports critic/loss, critic/wasserstein, critic/slope
    )
    return self.minimize(
      self.generator_loss,
      batch,
      variables=self.generator.trainable_variables,
      optimizer=self.generator_optimizer,
      name='generator',
      # The critic takes more steps than the generator.
      when=self.critic_optimizer.iterations % self._critic_steps == 0,
    )

  def critic_loss(self, batch, training):
    real, _ = batch  # [batch, 64]
    count = tf.shape(real)[0]
    fake = self.draw(count)
    mix = keras.random.uniform([count, 1], seed=self.seeds)
    between = mix * real + (1 - mix) * fake
    # Nested in the tape of `minimize`, which differentiates the slope.
    with tf.GradientTape() as tape:
      tape.watch(between)
      scores = self.critic(between, training=training)
    slope = tf.norm(tape.gradient(scores, between), axis=-1)  # [batch]
    wasserstein = (self.critic(real) - self.critic(fake))[:, 0]  # [batch]
    values = (slope - 1) ** 2 - wasserstein
    return tftrain.Loss(values, wasserstein=wasserstein, slope=slope)

  def generator_loss(self, batch, training):
    fake = self.draw(tf.shape(batch[0])[0], training)
    return tftrain.Loss(-self.critic(fake)[:, 0])

  def loss(self, batch, training):
    """Returns the energy distance to real images, which evaluations report.

    The losses above measure the balance of two players. The energy distance
    measures image quality and is comparable between runs.
    """
    real, _ = batch
    fake = self.draw(tf.shape(real)[0])
    spread = _distances(real, real) + _distances(fake, fake)
    return tftrain.Loss(2 * _distances(real, fake) - spread)

  def noise(self, count, seed):
    size = self.generator.input_shape[-1]
    return keras.random.normal([count, size], seed=seed)

  def draw(self, count, training=False):
    return self.generator(self.noise(count, self.seeds), training=training)

  def artifacts(self, batch):
    # An integer seed gives the same noise each time, so that TensorBoard shows
    # the same 64 images over the steps.
    images = tf.reshape(self.serve(self.noise(64, seed=1)), [8, 8, 8, 8])
    framed = tf.pad(images, [[0, 0], [0, 0], [1, 1], [1, 1]])
    grid = tf.transpose(framed, [0, 2, 1, 3])  # [row, height, column, width]
    return {'drawn': tf.reshape(grid, [1, 80, 80, 1])}

  def features(self, batch):  # the input of `serve` is not in the data
    return self.noise(len(batch[0]), seed=1)

  def serve(self, noise):
    return self.generator(noise, training=False)


def _distances(one, other):
  """Returns the mean distance of each of `one` to `other`, `[batch]`."""
  return tf.reduce_mean(tf.norm(one[:, None] - other[None], axis=-1), axis=-1)

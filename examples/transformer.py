"""A small decoder-only transformer of Python code, in mixed precision."""

from collections.abc import Callable

import gin
import keras
import tensorflow as tf

from examples import stdlib_text
import tftrain


class Block(keras.layers.Layer):
  """A pre-norm transformer block: causal attention, then an MLP, both residual.

  Layer normalization comes before each sublayer (Xiong et al. 2020), so that
  training needs no long warm-up.
  """

  def __init__(self, size: int, heads: int, dropout: float):
    super().__init__()
    layers = keras.layers
    self.attention_norm = layers.LayerNormalization()
    self.attention = layers.MultiHeadAttention(heads, size // heads)
    self.dense_norm = layers.LayerNormalization()
    self.wide = layers.Dense(4 * size, 'gelu')
    self.narrow = layers.Dense(size)
    self.dropout = layers.Dropout(dropout)

  def call(self, x, training=False):  # [batch, time, size]
    y = self.attention_norm(x)
    x += self.dropout(
      self.attention(y, y, use_causal_mask=True), training=training
    )
    y = self.narrow(self.wide(self.dense_norm(x)))
    return x + self.dropout(y, training=training)


class Transformer(keras.Model):
  """Maps characters `[batch, time]` to logits of the next one at each."""

  def __init__(
    self, length: int, size: int, heads: int, blocks: int, dropout: float
  ):
    super().__init__()
    self.length = length
    self.embedding = keras.layers.Embedding(stdlib_text.CODES, size)
    self.position = keras.layers.Embedding(length, size)
    self.blocks = [Block(size, heads, dropout) for _ in range(blocks)]
    self.last_norm = keras.layers.LayerNormalization()
    # The 8 significant bits of bfloat16 would round the loss itself.
    self.logits = keras.layers.Dense(stdlib_text.CODES, dtype='float32')

  def call(self, codes, training=False):
    x = self.embedding(codes) + self.position(tf.range(tf.shape(codes)[1]))
    for block in self.blocks:
      x = block(x, training=training)  # [batch, time, size]
    return self.logits(self.last_norm(x))  # [batch, time, codes]

  @tf.function
  def write(self, codes: tf.Tensor, count: int, seed: int = 0) -> tf.Tensor:
    """Samples `count` characters that continue `codes` `[batch, length]`."""
    written = tf.TensorArray(codes.dtype, count)
    for i in tf.range(count):
      logits = self(codes)[:, -1]  # [batch, codes]
      code = tf.random.stateless_categorical(
        logits, 1, seed=[seed, i], dtype=codes.dtype
      )
      codes = tf.concat([codes[:, 1:], code], axis=1)  # [batch, length]
      written = written.write(i, code[:, 0])
    return tf.transpose(written.stack())  # [batch, count]


class NextCharacter(tftrain.Task):
  """Next-character prediction on text windows, int32 `[batch, length + 1]`."""

  def loss(self, batch, training):
    targets = batch[:, 1:]
    logits = self.model(batch[:, :-1], training=training)
    values = keras.losses.sparse_categorical_crossentropy(
      targets, logits, from_logits=True
    )  # [batch, length]
    right = tf.equal(tf.argmax(logits, -1, targets.dtype), targets)
    return tftrain.Loss(
      tf.reduce_mean(values, axis=1),
      accuracy=tf.reduce_mean(tf.cast(right, tf.float32), axis=1),
    )

  def features(self, batch):
    return batch[:, :-1]

  def artifacts(self, batch):
    start = batch[:1, :-1]
    text = tf.concat([start, self.model.write(start, 200)], axis=1)[0]
    return {'sample': f'```\n{stdlib_text.decode(text.numpy())}\n```'}


@gin.register(module='transformer')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.AdamW,
  length: int = 48,
  size: int = 64,
  heads: int = 4,
  blocks: int = 2,
  dropout: float = 0.0,
) -> NextCharacter:
  model = Transformer(length, size, heads, blocks, dropout)
  return NextCharacter(model, optimizer())


@gin.register(module='transformer')
def train_data(batch_size: int = 16, length: int = 48) -> tftrain.Arrays:
  return tftrain.Arrays(stdlib_text.windows('train', length + 1), batch_size)


@gin.register(module='transformer')
def test_data(batch_size: int = 100, length: int = 48) -> tftrain.Arrays:
  text = stdlib_text.windows('test', length + 1)
  return tftrain.Arrays(text, batch_size, training=False)

"""A character-level language model of Python lines, with a custom RNN loop.

The loop of `Reader.call` is plain Python over a tensor. AutoGraph compiles it,
and it ends with the longest line of the batch.
"""

from collections.abc import Callable

import gin
import keras
import tensorflow as tf

from examples import stdlib_text
import tftrain


class Reader(keras.Model):
  """Maps the characters of lines to logits of the next character at each."""

  def __init__(self, units: int):
    super().__init__()
    self.embedding = keras.layers.Embedding(stdlib_text.CODES, units)
    self.cell = keras.layers.GRUCell(units)
    self.logits = keras.layers.Dense(stdlib_text.CODES)

  def call(self, lines):
    used = tf.reduce_any(lines > 0, axis=0)  # [time]
    length = tf.reduce_sum(tf.cast(used, tf.int32))  # of the longest line
    embedded = self.embedding(lines[:, :length])  # [batch, length, units]
    # The gradient of a slice embedded[:, t] would be as large as `embedded`.
    inputs = tf.TensorArray(self.compute_dtype, length)
    inputs = inputs.unstack(tf.transpose(embedded, [1, 0, 2]))
    states = tf.TensorArray(self.compute_dtype, length)
    state = tf.zeros([tf.shape(lines)[0], self.cell.units], self.compute_dtype)
    for t in tf.range(length):
      _, state = self.cell(inputs.read(t), state)  # [batch, units]
      states = states.write(t, state)
    hidden = tf.transpose(states.stack(), [1, 0, 2])  # [batch, length, units]
    return self.logits(hidden)  # [batch, length, codes]

  def write(self, lines: int, length: int, seed: int = 0) -> tf.Tensor:
    """Samples new lines, codes `[lines, length]`, as one batch."""
    codes = tf.fill([lines], ord('\n'))
    state = tf.zeros([lines, self.cell.units])
    written = []
    for t in range(length):
      _, state = self.cell(self.embedding(codes), state)
      codes = tf.random.stateless_categorical(
        self.logits(state), 1, seed=[seed, t], dtype=tf.int32
      )[:, 0]
      written.append(codes)
    return tf.stack(written, axis=1)


class NextCharacter(tftrain.Task):
  """Next-character prediction on lines.

  A batch is int32 `[batch, time]`, zeros after the end of each line.
  """

  def loss(self, batch, training):
    logits = self.model(batch[:, :-1], training=training)
    targets = batch[:, 1 : tf.shape(logits)[1] + 1]  # [batch, length]
    values = keras.losses.sparse_categorical_crossentropy(
      targets, logits, from_logits=True
    )
    right = tf.equal(tf.argmax(logits, -1, tf.int32), targets)
    mask = tf.cast(targets > 0, tf.float32)
    count = tf.reduce_sum(mask, axis=1)  # [batch]

    def mean(values):
      return tf.reduce_sum(values * mask, axis=1) / count

    # With character counts as weights, the mean over lines equals the mean over
    # characters.
    return tftrain.Loss(
      mean(values), count, accuracy=mean(tf.cast(right, tf.float32))
    )

  def artifacts(self, batch):
    rows = self.model.write(lines=12, length=72).numpy()
    lines = [stdlib_text.decode(row).partition('\n')[0] for row in rows]
    return {'sample': '\n'.join(['```', *lines, '```'])}


@gin.register(module='rnn')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  units: int = 64,
) -> NextCharacter:
  return NextCharacter(Reader(units), optimizer())


@gin.register(module='rnn')
def train_data(batch_size: int = 32, length: int = 82) -> tftrain.Arrays:
  return tftrain.Arrays(stdlib_text.lines('train', length), batch_size)


@gin.register(module='rnn')
def test_data(batch_size: int = 100, length: int = 82) -> tftrain.Arrays:
  lines = stdlib_text.lines('test', length)
  return tftrain.Arrays(lines, batch_size, training=False)

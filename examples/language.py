"""A small transformer language model of Python code, on packed sequences.

Passages of any length share rows, so that rows have almost no padding.
Attention stays within a passage, and positions count from its beginning.
"""

import os

import gin
import keras
import tensorflow as tf

from examples import stdlib_text
from examples import transformer
import tftrain


class Block(transformer.Block):
  """A block with an attention mask `[batch, time, time]`."""

  def call(self, x, mask):  # [batch, time, size]
    y = self.attention_norm(x)
    x += self.attention(y, y, attention_mask=mask, use_causal_mask=True)
    return x + self.narrow(self.wide(self.dense_norm(x)))


class Language(transformer.Transformer):
  """Maps `ids`, packed by `Packed`, to logits of the next token at each."""

  def __init__(self, length, size, heads, blocks):
    super().__init__(length, size, heads, blocks=0, dropout=0.0)
    self.blocks = [Block(size, heads, dropout=0.0) for _ in range(blocks)]

  def call(self, packed, training=False):
    segments = packed['ids_segment_ids']
    x = self.embedding(packed['ids']) + self.position(packed['ids_positions'])
    mask = segments[:, :, None] == segments[:, None, :]  # [batch, time, time]
    for block in self.blocks:
      x = block(x, mask)  # [batch, time, size]
    return self.logits(self.last_norm(x))  # [batch, time, codes]

  @tf.function
  def write(self, codes, begin):
    """Samples the tokens of rows `[batch, time]` from position `begin` on."""
    ones = tf.ones_like(codes)
    positions = tf.cumsum(ones, axis=1, exclusive=True)
    for i in tf.range(begin, tf.shape(codes)[1]):
      packed = {'ids_segment_ids': ones, 'ids_positions': positions}
      logits = self({'ids': codes, **packed})[:, i - 1]  # [batch, codes]
      drawn = tf.random.stateless_categorical(logits, 1, [0, i], codes.dtype)
      codes = tf.where(positions == i, drawn, codes)
    return codes


class PackedText(tftrain.Task):
  """Next-token prediction on batches of `ids`, packed by `Packed`."""

  def loss(self, batch, training):
    targets, segments = batch['ids'][:, 1:], batch['ids_segment_ids']
    logits = self.model(batch, training=training)[:, :-1]
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    right = tf.equal(tf.argmax(logits, -1, targets.dtype), targets)
    # The last token of a passage must not predict the next passage.
    within = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    mask = tf.cast(within, tf.float32)
    count = tf.reduce_sum(mask, axis=1)  # [batch]
    share = tf.math.divide_no_nan(mask, count[:, None])  # 1 / count, or 0
    accuracy = tf.reduce_sum(share * tf.cast(right, tf.float32), axis=1)
    values = tf.reduce_sum(share * values, axis=1)  # [batch]
    return tftrain.Loss(values, count, accuracy=accuracy)

  def artifacts(self, batch):
    prompt = stdlib_text.encode('def ')
    room = batch['ids'].shape[1] - len(prompt)
    rows = tf.tile(tf.pad(prompt[None], [[0, 0], [0, room]]), [3, 1])
    written = self.model.write(rows, len(prompt)).numpy()
    texts = [f'```\n{stdlib_text.decode(row)}\n```' for row in written]
    return {'samples': '\n\n'.join(texts)}


def characters(example):
  """Returns the codes of a text; non-ASCII bytes become question marks."""
  codes = tf.cast(tf.io.decode_raw(example['text'], tf.uint8), tf.int32)
  return {'ids': tf.where(codes < stdlib_text.CODES, codes, ord('?'))}


def passage(example, seed):
  """Returns up to 96 characters at a random offset, redrawn each epoch."""
  codes = characters(example)['ids']
  draws = tf.random.stateless_uniform([2], seed)
  length = tf.minimum(16 + tf.cast(draws[0] * 81, tf.int32), tf.size(codes))
  room = tf.cast(tf.size(codes) - length + 1, tf.float32)
  begin = tf.cast(draws[1] * room, tf.int32)
  return {'ids': codes[begin : begin + length]}


@gin.register(module='language')
def data(batch_size=16, length=96, training=True):
  """Returns modules of the standard library, one file each.

  Evaluation reads the held-out modules from beginning to end.
  """
  return tftrain.data.Examples(
    tftrain.data.TextFiles(f'{os.path.dirname(os.__file__)}/*.py'),
    batch_size,
    training=training,
    holdout=0.03,
    subset='train' if training else 'holdout',
    map=passage if training else characters,
    batcher=tftrain.data.Packed(length, too_long='split'),
  )


@gin.register(module='language')
def make_task(optimizer=keras.optimizers.AdamW, length=96, size=64, blocks=2):
  model = Language(length, size, heads=4, blocks=blocks)
  return PackedText(model, optimizer())

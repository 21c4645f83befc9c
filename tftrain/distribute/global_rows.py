"""Gather: the rows of the whole global batch, inside a loss.

For losses that compare every example with every other, such as contrastive
ones (SimCLR, CLIP), whose value on the rows of one replica alone is another.
"""

from collections.abc import Iterator
import contextlib
import threading
from typing import Any

import tensorflow as tf

from tftrain import errors


class _Current(threading.local):
  """The micro-batches of this thread's step; each replica has a thread."""

  micro_batches: int = 1


_current = _Current()


def gather(values: Any) -> Any:
  """Returns the rows of all replicas, in the order of the global batch.

  Gradients flow back to the replica that a row came from, so that a loss over
  its own rows beside all rows is exact on any number of replicas. Replicas may
  have unequal numbers of rows.

  >>> def loss(self, batch, training):
  ...   a, b = self.encode(batch, training)  # [batch, features]
  ...   logits = tf.matmul(a, tftrain.distribute.gather(b), transpose_b=True)
  ...   labels = tftrain.distribute.own_rows(b)
  ...   return Loss(tf.nn.sparse_softmax_cross_entropy_with_logits(
  ...     labels, logits))

  Args:
    values: A tensor `[batch, ...]`, or a nest of them.

  Returns:
    Tensors `[global batch, ...]`.

  Raises:
    TaskError: Outside a loss, or under accumulation, where the rows of a step
      are never there at once.
  """
  context = _context('gather')
  if context.num_replicas_in_sync == 1:
    return values
  return tf.nest.map_structure(
    lambda leaf: context.all_gather(tf.convert_to_tensor(leaf), axis=0), values
  )


def own_rows(values: Any) -> tf.Tensor:
  """Returns the places of this replica's rows in what `gather` returns.

  Args:
    values: What was gathered, `[batch, ...]`.

  Returns:
    int32, `[batch]`.
  """
  context = _context('own_rows')
  rows = tf.shape(tf.nest.flatten(values)[0])[0]
  if context.num_replicas_in_sync == 1:
    return tf.range(rows)
  counts = context.all_gather(rows[tf.newaxis], axis=0)
  before = tf.cumsum(counts, exclusive=True)
  first = before[tf.cast(context.replica_id_in_sync_group, tf.int32)]
  return first + tf.range(rows)


@contextlib.contextmanager
def in_micro_batches(count: int) -> Iterator[None]:
  """Says that the losses in this context see one of `count` micro-batches."""
  before, _current.micro_batches = _current.micro_batches, count
  try:
    yield
  finally:
    _current.micro_batches = before


def _context(name: str) -> Any:
  context = tf.distribute.get_replica_context()
  if context is None:
    raise errors.TaskError(
      f'{name}() is called outside the replicas; call it inside loss(batch, '
      'training)'
    )
  if _current.micro_batches > 1:
    raise errors.TaskError(
      f'{name}() would see one micro-batch of Update.accumulate='
      f'{_current.micro_batches}, not the global batch; set accumulate=1 (and '
      'Update.remat to save memory)'
    )
  return context

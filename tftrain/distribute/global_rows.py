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
  """The step of this thread; each replica has a thread.

  Attributes:
    micro_batches: Number of parts in which the step sees its batch.
    full_rows: Rows of a full global batch; None if unknown.
  """

  micro_batches: int = 1
  full_rows: int | None = None


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
    values: A tensor of numbers `[batch, ...]`, or a nest of them.

  Returns:
    Tensors `[global batch, ...]`.

  Raises:
    TaskError: Outside a loss, or under accumulation, where the rows of a step
      are never there at once.
  """
  context = _context('gather')
  if context.num_replicas_in_sync == 1:
    return values
  replicas = context.num_replicas_in_sync
  counts, _ = _counts(context, values)
  rows = counts[_replica(context)]
  # A collective in a loop wants one shape for all steps: `all_gather` and
  # varying sizes fail where the last batch is smaller.
  most = tf.reduce_max(counts)
  if _current.full_rows is not None:
    most = tf.constant(-(-_current.full_rows // replicas))
    too_many = tf.debugging.Assert(
      rows <= most,
      ['gather(): a batch has more rows than the first one; make it smaller'],
    )
    with tf.control_dependencies([too_many] if too_many is not None else []):
      rows = tf.identity(rows)
  is_row = tf.reshape(tf.sequence_mask(counts, most), [-1])

  def everyone(leaf: Any) -> tf.Tensor:
    own = tf.convert_to_tensor(leaf)
    before = _replica(context) * most
    after = replicas * most - before - rows
    padded = tf.pad(own, [[before, after]] + [[0, 0]] * (own.shape.rank - 1))
    static = tf.get_static_value(most)
    if static is not None:
      padded = tf.ensure_shape(padded, [replicas * static, *own.shape[1:]])
    return tf.boolean_mask(
      context.all_reduce(tf.distribute.ReduceOp.SUM, padded), is_row
    )

  return tf.nest.map_structure(everyone, values)


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
  _, first = _counts(context, values)
  return first + tf.range(rows)


def _counts(context: Any, values: Any) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns (rows of each replica, place of this replica's first row)."""
  rows = tf.shape(tf.nest.flatten(values)[0])[0]
  replica = _replica(context)
  own = rows * tf.one_hot(replica, context.num_replicas_in_sync, dtype=tf.int32)
  counts = context.all_reduce(tf.distribute.ReduceOp.SUM, own)
  return counts, tf.cumsum(counts, exclusive=True)[replica]


def _replica(context: Any) -> tf.Tensor:
  return tf.cast(context.replica_id_in_sync_group, tf.int32)


@contextlib.contextmanager
def in_step(
  micro_batches: int = 1, full_rows: int | None = None
) -> Iterator[None]:
  """The context of a loss in a step.

  Args:
    micro_batches: Number of parts in which the step sees its batch.
    full_rows: Rows of a full global batch; None if unknown.
  """
  before = _current.micro_batches, _current.full_rows
  _current.micro_batches, _current.full_rows = micro_batches, full_rows
  try:
    yield
  finally:
    _current.micro_batches, _current.full_rows = before


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

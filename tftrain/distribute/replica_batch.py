"""Replica batches: run functions on replicas, each with its rows."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import logging
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import global_rows
from tftrain.distribute import row_sharding

# The rows in a step's batch, or None for the whole global batch. A context
# variable, as the user's code stands between the loop and `run_on_rows`.
_BATCH_SHARE: contextvars.ContextVar[row_sharding.Share | None] = (
  contextvars.ContextVar('held', default=None)
)


# The rows of a full global batch of the traced loop; None if unknown.
_FULL_ROWS: contextvars.ContextVar[int | None] = contextvars.ContextVar(
  'full rows', default=None
)


@contextlib.contextmanager
def batch_share(
  share: row_sharding.Share | None, full_rows: int | None = None
) -> Iterator[None]:
  """Declares what the batches traced in this context hold.

  Args:
    share: The rows that they hold; None for the whole global batch.
    full_rows: Rows of a full global batch; None if unknown.
  """
  tokens = _BATCH_SHARE.set(share), _FULL_ROWS.set(full_rows)
  try:
    yield
  finally:
    _BATCH_SHARE.reset(tokens[0])
    _FULL_ROWS.reset(tokens[1])


def current_share() -> row_sharding.Share | None:
  """Returns the rows in a step's batch; None means the whole global batch."""
  return _BATCH_SHARE.get()


def full_rows() -> int | None:
  """Returns the rows of a full global batch; None if unknown."""
  return _FULL_ROWS.get()


def run_on_rows(function: Callable[[Any], Any], batch: Any) -> Any:
  """Runs `function` on every replica, each with its rows of a global batch."""
  # Read here: replicas are traced in other threads.
  share, full = current_share(), full_rows()

  def on_replica(batch: Any) -> Any:
    with global_rows.in_step(full_rows=full):
      return function(own_rows(batch, share))

  with eager_is_fine():
    return tf.distribute.get_strategy().run(on_replica, args=(batch,))


@contextlib.contextmanager
def eager_is_fine() -> Iterator[None]:
  """Mutes the advice to compile: an eager run here runs once, to build."""

  def mute(record: logging.LogRecord) -> bool:
    return 'Strategy eagerly' not in record.getMessage()

  logger = tf.get_logger()
  logger.addFilter(mute)
  try:
    yield
  finally:
    logger.removeFilter(mute)


def on_first_replica(values: Any) -> Any:
  """Returns the first local replica's values of a `run_on_rows` result."""
  strategy = tf.distribute.get_strategy()
  return tf.nest.map_structure(
    lambda value: strategy.experimental_local_results(value)[0], values
  )


def sum_over_replicas(function: Callable[[Any], Any], batch: Any) -> Any:
  """Runs `function` on every replica's rows and sums its float32 scalars."""
  structure: Any = None

  def flat(rows: Any) -> tf.Tensor:
    nonlocal structure
    structure = function(rows)
    return tf.stack(tf.nest.flatten(structure))

  strategy = tf.distribute.get_strategy()
  total = strategy.reduce(
    tf.distribute.ReduceOp.SUM, run_on_rows(flat, batch), None
  )
  return tf.nest.pack_sequence_as(structure, tf.unstack(total))


def own_rows(batch: Any, held: row_sharding.Share | None) -> Any:
  """Returns this replica's rows of a global batch, or of the share `held`.

  Rows are assigned in order and as evenly as possible. One host iterator feeds
  all replicas, and every row of a ragged last batch is used exactly once.
  """
  context = tf.distribute.get_replica_context()
  replicas = context.num_replicas_in_sync
  replica = context.replica_id_in_sync_group
  if held is not None:
    replicas, replica = held.end - held.first, replica - held.first
  if replicas == 1:
    return batch
  if divides(batch, replicas):
    return part(batch, replicas, replica)

  def deal(leaf: tf.Tensor) -> tf.Tensor:
    own = row_sharding.Share(replica, replica + 1, replicas)
    begin, end = own.of(tf.shape(leaf)[0])
    return leaf[begin:end]

  return tf.nest.map_structure(deal, batch)


def divides(batch: Any, parts: int) -> bool:
  """Returns whether the static shapes of a batch divide into equal parts."""
  leaves = tf.nest.flatten(batch)
  return all(
    leaf.shape.is_fully_defined() and leaf.shape[0] % parts == 0
    for leaf in leaves
  )


def part(batch: Any, parts: int, index: Any) -> Any:
  """Returns part `index` of a batch that divides; shapes stay static."""
  return tf.nest.map_structure(
    lambda leaf: tf.reshape(leaf, [parts, -1, *leaf.shape[1:]])[index], batch
  )


def first_part(batch: Any, parts: int) -> Any:
  """Returns the first of `parts` parts, with at least a row per replica."""
  if parts == 1:
    return batch
  least = tf.distribute.get_strategy().num_replicas_in_sync
  rows = tf.maximum(batch_size(batch) // parts, least)
  return tf.nest.map_structure(lambda leaf: leaf[:rows], batch)


def batch_size(batch: Any) -> tf.Tensor:
  """Returns the number of rows of a batch, an int32 scalar.

  The number is the first dimension of the first leaf.
  """
  return tf.shape(tf.nest.flatten(batch)[0])[0]


def check_divides(
  global_batch_size: int | None, strategy: tf.distribute.Strategy
) -> None:
  """Checks that every replica gets the same number of rows.

  Raises:
    InputError: If `global_batch_size` is not a multiple of the replicas.
  """
  replicas = strategy.num_replicas_in_sync
  if global_batch_size and global_batch_size % replicas:
    lower = global_batch_size // replicas * replicas
    choices = [str(size) for size in (lower, lower + replicas) if size]
    raise errors.InputError(
      f'batch_size {global_batch_size} does not divide by {replicas} replicas; '
      f'use {" or ".join(choices)}'
    )

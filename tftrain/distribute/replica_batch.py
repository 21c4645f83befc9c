"""Runs functions on replicas, each with its rows of a global batch."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import logging
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import row_sharding

# What a step's batch holds where it is not the whole global batch. A context,
# as between a loop and `run_on_rows` stand the user's train_step and loss.
_HELD: contextvars.ContextVar[row_sharding.Share | None] = (
  contextvars.ContextVar('held', default=None)
)


@contextlib.contextmanager
def holding(share: row_sharding.Share | None) -> Iterator[None]:
  """While it is traced, batches hold only these rows of the global batch."""
  token = _HELD.set(share)
  try:
    yield
  finally:
    _HELD.reset(token)


def run_on_rows(function: Callable[[Any], Any], batch: Any) -> Any:
  """Runs `function` on every replica, each with its rows of a global batch.

  Nothing in it happens before the batch is there: at the end of the data not
  even the seed of a dropout moves.
  """
  held = _HELD.get()  # here: replicas are traced in threads of their own

  def on_replica(batch: Any) -> Any:
    with tf.control_dependencies(tf.nest.flatten(batch)):
      return function(_own_rows(batch, held))

  with _eager_is_fine():
    return tf.distribute.get_strategy().run(on_replica, args=(batch,))


@contextlib.contextmanager
def _eager_is_fine() -> Iterator[None]:
  """Mutes the advice to compile: what runs eagerly here runs once, to build."""

  def mute(record: logging.LogRecord) -> bool:
    return 'Strategy eagerly' not in record.getMessage()

  logger = tf.get_logger()
  logger.addFilter(mute)
  try:
    yield
  finally:
    logger.removeFilter(mute)


def on_first_replica(values: Any) -> Any:
  """What `run_on_rows` returned, as the first replica of this host has it."""
  strategy = tf.distribute.get_strategy()
  return tf.nest.map_structure(
    lambda value: strategy.experimental_local_results(value)[0], values
  )


def sum_over_replicas(function: Callable[[Any], Any], batch: Any) -> Any:
  """Runs `function` on every replica's rows and adds up the scalars."""
  strategy = tf.distribute.get_strategy()
  return tf.nest.map_structure(
    lambda value: strategy.reduce(tf.distribute.ReduceOp.SUM, value, None),
    run_on_rows(function, batch),
  )


def _own_rows(batch: Any, held: row_sharding.Share | None) -> Any:
  """This replica's rows of a batch, all of them or those of `held`.

  Rows are dealt in order and as evenly as they go, so one host iterator feeds
  all replicas and every row of a ragged last batch is used exactly once.
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
  """Whether it is known now that a batch can be cut into equal parts."""
  leaves = tf.nest.flatten(batch)
  return all(
    leaf.shape.is_fully_defined() and leaf.shape[0] % parts == 0
    for leaf in leaves
  )


def part(batch: Any, parts: int, index: Any) -> Any:
  """Part `index` of a batch that divides; shapes stay static."""
  return tf.nest.map_structure(
    lambda leaf: tf.reshape(leaf, [parts, -1, *leaf.shape[1:]])[index], batch
  )


def first_part(batch: Any, parts: int) -> Any:
  """The first of `parts` parts of a batch; a row per replica at least."""
  if parts == 1:
    return batch
  least = tf.distribute.get_strategy().num_replicas_in_sync
  rows = tf.maximum(batch_size(batch) // parts, least)
  return tf.nest.map_structure(lambda leaf: leaf[:rows], batch)


def batch_size(batch: Any) -> tf.Tensor:
  """Rows of a batch: the first dimension of its first leaf, an int32 scalar."""
  return tf.shape(tf.nest.flatten(batch)[0])[0]


def check_divides(
  global_batch_size: int | None, strategy: tf.distribute.Strategy
) -> None:
  """Raises InputError unless every replica gets the same number of rows."""
  replicas = strategy.num_replicas_in_sync
  if global_batch_size and global_batch_size % replicas:
    lower = global_batch_size // replicas * replicas
    choices = [str(size) for size in (lower, lower + replicas) if size]
    raise errors.InputError(
      f'batch_size {global_batch_size} does not divide by {replicas} replicas; '
      f'use {" or ".join(choices)}'
    )

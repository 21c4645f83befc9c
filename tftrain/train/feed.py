"""Feed: supplies the batches of a compiled loop and restores the position."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import copy
import functools
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data import device_prefetch
from tftrain.data import iterator_state
from tftrain.data import pipeline as pipeline_lib
from tftrain.distribute import replica_batch
from tftrain.distribute import row_sharding
from tftrain.train import blocks
from tftrain.train import stacking

# Row numbers that are made at once: they take about 20 ms, in which a stop
# request is not looked at. At least so many steps should be worth it.
_MOST_NUMBERS, _LEAST_STEPS = 2**14, 64


class Feed:
  """The batches of a compiled loop, from an iterator or made in the graph.

  Args:
    pipeline: The data.
    seed: Seed of the data's order.
  """

  def __init__(self, pipeline: pipeline_lib.Pipeline, seed: int):
    self._pipeline = pipeline
    # The loop's pipeline: the same, or only this worker's rows of each batch.
    self._taken = pipeline
    self._share: row_sharding.Share | None = None
    self._device: str | None = None  # target of device prefetching
    self._seed = seed
    with tf.device('CPU:0'):
      first = pipeline.batch(seed, tf.constant(0, tf.int64))
    self._in_graph = first is not None
    # Start of the next batch, if the step alone does not determine it.
    self._cursor: tf.Variable | None = None
    self._saved: Any = None
    self._marked: tuple[int, list[int]] | None = None
    self._empty: Any = None
    self._full_rows = pipeline.batch_size  # of the first batch, if unknown
    self._stacking: stacking.Stacking | None = None  # not of batches in memory
    self._is_stacked = False
    if pipeline.has_cursor:
      with tf.device('CPU:0'):
        self._cursor = tf.Variable([0, 0], dtype=tf.int64, trainable=False)

  @property
  def rows(self) -> int:
    """The per-replica batch size; 1 if the batch size varies."""
    replicas = int(tf.distribute.get_strategy().num_replicas_in_sync)
    return max((self._pipeline.batch_size or 1) // replicas, 1)

  def deal(self, share: row_sharding.Share | None, *, whole: bool) -> None:
    """Restricts batches to the rows of `share`, if the pipeline supports it.

    Also turns on device prefetching, if the run has one GPU.

    Args:
      share: The rows of this worker; None for a single worker.
      whole: Whether the step needs whole global batches.
    """
    self._device = device_prefetch.device_for(self._pipeline)
    part = None if share is None or whole else self._pipeline.part(share)
    if part is not None:
      assert share is not None
      self._taken, self._share = part, share
      logging.info(
        'This worker makes the rows of replicas %d to %d of %d.',
        share.first,
        share.end - 1,
        share.replicas,
      )

  def stack(self, *, stacked: bool = True) -> None:
    """Makes `iterator` return Blocks, for a block loop.

    Args:
      stacked: False undoes it.

    Raises:
      ConfigError: If batches have no static shapes, or hold what XLA does not
        know.
    """
    what = self.not_static() if stacked else None
    if what:
      raise errors.ConfigError(
        f"Update.jit = 'block' needs numbers of static shapes, and {what}; "
        "drop or pad the last batch, or set jit='off'"
      )
    self._is_stacked = stacked
    self._stacking = None
    if stacked and not self._has_numbers:
      self._stacking = stacking.Stacking.of(
        self._pipeline.element_spec,
        one_by_one=self._pipeline.keeps_iterator,
        is_endless=self._pipeline.repeats,
      )

  def not_static(self) -> str | None:
    """Returns the part of a batch without a static shape; None if none."""
    for name, spec in pipeline_lib.leaves_by_expression(
      self._pipeline.element_spec
    ).items():
      is_tensor = isinstance(spec, tf.TensorSpec) and spec.dtype != tf.string
      shape = spec.shape[1:] if self._has_numbers else spec.shape
      if not (is_tensor and shape.is_fully_defined()):
        return f'{name} is {pipeline_lib.described(spec)}'
    return None

  @property
  def in_memory(self) -> bool:
    """Whether blocks are made of row numbers; see `stack`."""
    return self._is_stacked and self._stacking is None

  def take_block(
    self, block: Any, step: tf.Tensor, n: tf.Tensor
  ) -> tuple[Any, tf.Tensor]:
    """Takes the batches of a block; traceable.

    Args:
      block: What `Blocks.at` returned.
      step: The first step of the block.
      n: Number of steps.

    Returns:
      (tensors of static shapes for `batch_at`, number of steps, which may be
      more than `n`, and is less at the end of the data).

    Raises:
      OutOfRangeError: If the data has ended.
    """
    if self._stacking is None:
      return self._numbers(step, n, _most_numbers(block)), n
    stacked, count = self._stacking.take(block, n)
    ended = tf.cond((count == 0) & (n > 0), self._end, _no_end)
    with tf.control_dependencies([ended]):
      return stacked, tf.identity(count)

  def batch_at(self, stacked: Any, index: tf.Tensor) -> Any:
    """Returns a batch of what `take_block` took; traceable, also by XLA."""
    # Not stacked[index]: XLA would compile anew for each value of an index that
    # does not change within the block.
    batch = tf.nest.map_structure(lambda leaf: tf.gather(leaf, index), stacked)
    if self.in_memory:
      return self._pipeline.rows(batch)
    return batch if self._cursor is None else self._noted(batch)

  def empty_block(self, block: Any) -> Any:
    """Returns tensors like those that `take_block` takes."""
    if self._stacking is not None:
      return self._stacking.empty(block)
    zero = tf.zeros([], tf.int64)
    return self._numbers(zero, zero, _most_numbers(block))

  @property
  def most_steps(self) -> int | None:
    """Most steps whose row numbers are made at once; None if none are."""
    leaves = tf.nest.flatten(self._pipeline.element_spec)
    whole = self._share is None and all(leaf.shape[0] for leaf in leaves)
    if not (self._in_graph and whole and self._has_numbers):
      return None
    most = _MOST_NUMBERS // (self._pipeline.batch_size or 1)
    return most if most >= _LEAST_STEPS else None

  def made(
    self, step: tf.Tensor, n: tf.Tensor, *, at_once: bool
  ) -> Callable[[tf.Tensor], Any] | None:
    """Returns `at(index)`, the batch of a step as a graph expression.

    None if an iterator makes the batches.

    Args:
      step: The first step.
      n: Number of steps; at most `most_steps` if `at_once`.
      at_once: Whether to make the row numbers of all steps at once, if that
        can be.
    """
    if not self._in_graph:
      return None
    numbers = None
    if at_once and self.most_steps is not None:
      with tf.device('CPU:0'):
        numbers = self._numbers(step, n, n)

    def at(index: tf.Tensor) -> Any:
      with tf.device('CPU:0'):
        if numbers is None:
          return self._taken.batch(self._seed, step + index)
        return self._pipeline.rows(numbers[index])

    return at

  @functools.cached_property
  def _has_numbers(self) -> bool:
    """Whether the rows of the data are arrays in memory."""
    return self._numbers(0, 1, 1) is not None

  def _numbers(self, step: Any, n: Any, most: Any) -> tf.Tensor | None:
    step, n = tf.cast(step, tf.int64), tf.cast(n, tf.int64)
    return self._pipeline.row_numbers(self._seed, step, n, most)

  def _blocks(self, iterator: Any) -> blocks.Blocks:
    if self._stacking is not None:
      ahead = not self._pipeline.keeps_iterator
      return blocks.Blocks(iterator, most=self._stacking.most, ahead=ahead)
    steps = self._pipeline.num_steps
    leaves = tf.nest.flatten(self._pipeline.element_spec)
    if steps is None or leaves[0].shape[0] is not None:
      return blocks.Blocks()
    return blocks.Blocks(full_steps=steps - 1)

  def held(self) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which to trace the use of a loop's batch."""
    return replica_batch.batch_share(self._share, self._full_rows)

  def iterator(self, start_step: int) -> Any:
    """Returns an iterator that starts at `start_step`.

    None if the graph makes the batches.
    """
    iterator = None
    if not (self.in_memory or (self._in_graph and not self._is_stacked)):
      iterator = self._restored(start_step)
    return self._blocks(iterator) if self._is_stacked else iterator

  def _restored(self, start_step: int) -> Any:
    """Returns an iterator of the data at `start_step`."""
    where: dict[str, Any] = {}
    if self._cursor is not None and start_step:
      where['cursor'] = self._cursor.numpy().tolist()
    with tf.device('CPU:0'):
      dataset = self._taken.dataset(self._seed, start_step, **where)
      if self._stacking is not None:
        dataset = self._stacking.grouped(dataset)
      if self._device is not None:
        return device_prefetch.iterator(dataset, self._device)
      iterator = iter(dataset)
      if self._saved is not None and start_step:
        iterator_state.load_iterator(iterator, self._saved)
    return iterator

  def mark(self, step: int) -> None:
    """Records the position of the data after `step` steps, for `again`."""
    cursor = [0, 0]  # lists, as an array may share the memory of the variable
    if self._cursor is not None and step:  # at 0 it is that of the dry run
      cursor = self._cursor.numpy().tolist()
    self._marked = step, cursor

  def again(self, step: int) -> Any:
    """Returns the batch after `step` steps again; None if not reproducible."""
    if self._in_graph:
      with tf.device('CPU:0'):
        return self._pipeline.batch(self._seed, tf.constant(step, tf.int64))
    lost = self._pipeline.keeps_iterator or self._pipeline.restarts
    if lost or self._marked is None:
      return None
    start, where = step, {}
    if self._cursor is not None:
      start, where['cursor'] = self._marked
    with tf.device('CPU:0'):
      elements = self._pipeline.dataset(self._seed, start, **where)
      batch = next(iter(elements.skip(step - start)))
    return batch[0] if where else batch

  def read_state(self, iterator: Any) -> dict[str, tf.Tensor]:
    """Returns the data position: {} if the step alone determines it."""
    if self._cursor is not None:
      return {'cursor': self._cursor.read_value()}
    if not self._pipeline.keeps_iterator:
      return {}
    if isinstance(iterator, blocks.Blocks):
      if iterator.taken:
        raise errors.CheckpointError(
          'the state of the data is not known, as steps that are not finite '
          'ended a block'
        )
      iterator = iterator.iterator
    if iterator is None:  # not read since the restore, or never read
      saved = self._saved
      if saved is None:
        saved = iterator_state.save_iterator(self._restored(0))
      return {'iterator': tf.constant(saved)}
    return {'iterator': iterator_state.save_iterator(iterator)}

  def write_state(self, state: Mapping[str, Any]) -> None:
    if self._cursor is not None:
      self._cursor.assign(state['cursor'])
    self._saved = state.get('iterator')

  def take(self, iterator: Any, step: tf.Tensor) -> Any:
    """Takes the batch of `step`; OutOfRangeError at the end of the data."""
    if isinstance(iterator, blocks.Blocks):
      return self._taken_one(iterator, int(step))
    if self._in_graph:
      with tf.device('CPU:0'):
        return self._taken.batch(self._seed, step)
    return self._next(iterator)

  def _taken_one(self, given: blocks.Blocks, step: int) -> Any:
    """Takes one batch of Blocks, eagerly."""
    if given.iterator is None:
      return self.again(step)
    taken = given.held(step)
    if taken is None:
      now, one = tf.constant(step, tf.int64), tf.ones([], tf.int64)
      taken = blocks.Taken(
        lambda: self.take_block(given.iterator, now, one), step
      )
    stacked, _ = taken.result()
    batch = self.batch_at(stacked, tf.constant(taken.offset))
    given.use(taken, 1)
    return batch

  def _next(self, iterator: Any) -> Any:
    try:
      batch = next(iterator)
    except StopIteration:  # running eagerly
      raise tf.errors.OutOfRangeError(None, None, 'end of data') from None
    return batch if self._cursor is None else self._noted(batch)

  def take_together(
    self,
    iterator: Any,
    step: tf.Tensor,
    agree: Callable[[tf.Tensor], tf.Tensor],
  ) -> Any:
    """Takes a batch as `take` does; the data ends for all workers at once.

    Args:
      iterator: The result of `iterator`.
      step: The step of the batch.
      agree: Returns whether the data ended on any worker, given whether it
        ended on this one; called once the batch is available.
    """
    if self._in_graph:  # all workers have the same data, checked at the start
      batch = self.take(iterator, step)
      with tf.control_dependencies(tf.nest.flatten(batch)):
        agree(tf.constant(False))
      return batch
    found = iterator.get_next_as_optional()
    ended = agree(~found.has_value())
    with tf.control_dependencies([tf.cond(ended, self._end, _no_end)]):
      batch = found.get_value()
    return batch if self._cursor is None else self._noted(batch)

  def _end(self) -> tf.Tensor:
    """Raises OutOfRangeError in the graph, by reading an empty dataset."""
    if self._empty is None:
      with tf.init_scope(), tf.device('CPU:0'):
        self._empty = iter(tf.data.Dataset.range(0))
    return self._empty.get_next()  # `next` would raise StopIteration

  def _noted(self, batch: Any) -> Any:
    """Stores the cursor of a (batch, cursor) pair and returns the batch."""
    assert self._cursor is not None
    batch, after = batch
    self._cursor.assign(after, read_value=False)
    return batch

  def first_batch(self) -> Any:
    """Returns the whole first global batch.

    Raises:
      InputError: If the data is empty.
    """
    try:
      with pipeline_lib.explained(self._pipeline):
        whole = copy.copy(self)
        whole._taken, whole._device = self._pipeline, None
        batch = whole.take(whole.iterator(0), tf.constant(0, tf.int64))
    except tf.errors.OutOfRangeError:
      raise errors.InputError(
        'the data yields 0 batches; check its files and filters'
      ) from None
    if self._full_rows is None:
      self._full_rows = int(replica_batch.batch_size(batch))
    return batch


def _most_numbers(block: Any) -> int:
  """Returns the static number of batches in a block of row numbers."""
  return 1 if block == blocks.RAGGED else blocks.MOST


def _no_end() -> tf.Tensor:
  return tf.zeros([], tf.int64)

"""Feed: where a compiled loop takes its batches from."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import copy
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data import device_prefetch
from tftrain.data import iterator_state
from tftrain.data import pipeline as pipeline_lib
from tftrain.distribute import replica_batch
from tftrain.distribute import row_sharding


class Feed:
  """An iterator, or the graph itself; and how it is found again at a step."""

  def __init__(self, pipeline: pipeline_lib.Pipeline, seed: int):
    self._pipeline = pipeline
    # What a loop takes: the same, or of each batch only this worker's rows.
    self._taken = pipeline
    self._share: row_sharding.Share | None = None
    self._device: str | None = None  # where to copy batches ahead of a step
    self._seed = seed
    with tf.device('CPU:0'):
      first = pipeline.batch(seed, tf.constant(0, tf.int64))
    self._in_graph = first is not None
    # Where the next batch begins, if the step alone does not say it.
    self._cursor: tf.Variable | None = None
    self._saved: Any = None
    self._marked: tuple[int, list[int]] | None = None
    self._empty: Any = None
    if pipeline.has_cursor:
      with tf.device('CPU:0'):
        self._cursor = tf.Variable([0, 0], dtype=tf.int64, trainable=False)

  @property
  def rows(self) -> int:
    """Of a batch on one replica; 1 where that is not known."""
    replicas = int(tf.distribute.get_strategy().num_replicas_in_sync)
    return max((self._pipeline.batch_size or 1) // replicas, 1)

  def deal(self, share: row_sharding.Share | None, *, whole: bool) -> None:
    """From now on a loop takes only the rows of `share`, where that can be.

    And where there is one accelerator, batches are copied there ahead of it.

    Args:
      share: This worker's; None where it is the only one.
      whole: Whether the step may look at all of a batch.
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

  def held(self) -> contextlib.AbstractContextManager[None]:
    """Surrounds what is traced with a batch that a loop took."""
    return replica_batch.holding(self._share)

  def iterator(self, start_step: int) -> Any:
    """What to give the loop so that it starts at `start_step`."""
    if self._in_graph:
      return None
    where: dict[str, Any] = {}
    if self._cursor is not None and start_step:
      where['cursor'] = self._cursor.numpy().tolist()
    with tf.device('CPU:0'):
      dataset = self._taken.dataset(self._seed, start_step, **where)
      if self._device is not None:
        return device_prefetch.iterator(dataset, self._device)
      iterator = iter(dataset)
      if self._saved is not None and start_step:
        iterator_state.load_iterator(iterator, self._saved)
    return iterator

  def mark(self, step: int) -> None:
    """Notes where the batches after `step` begin, for `again`."""
    cursor = [0, 0]  # a list below, too: an array may share its memory
    if self._cursor is not None and step:  # before that it is of a trial
      cursor = self._cursor.numpy().tolist()
    self._marked = step, cursor

  def again(self, step: int) -> Any:
    """The batch after `step` steps once more; None if nobody knows it."""
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
    """What says where the data is, besides the step."""
    if self._cursor is not None:
      return {'cursor': self._cursor.read_value()}
    if not self._pipeline.keeps_iterator:
      return {}
    if iterator is None:  # not read from since it was restored, or at all
      saved = self._saved
      if saved is None:
        saved = iterator_state.save_iterator(self.iterator(0))
      return {'iterator': tf.constant(saved)}
    return {'iterator': iterator_state.save_iterator(iterator)}

  def write_state(self, state: Mapping[str, Any]) -> None:
    if self._cursor is not None:
      self._cursor.assign(state['cursor'])
    self._saved = state.get('iterator')

  def take(self, iterator: Any, step: tf.Tensor) -> Any:
    """The batch of `step`; raises OutOfRangeError at the end of the data."""
    if self._in_graph:
      with tf.device('CPU:0'):
        return self._taken.batch(self._seed, step)
    try:
      batch = next(iterator)
    except StopIteration:  # running eagerly
      raise tf.errors.OutOfRangeError(None, None, 'end of data') from None
    if self._cursor is None:
      return batch
    return self._noted(batch)

  def take_together(
    self,
    iterator: Any,
    step: tf.Tensor,
    agree: Callable[[tf.Tensor], tf.Tensor],
  ) -> Any:
    """`take` where the data end for all workers if they end for one.

    Args:
      iterator: What `iterator` made.
      step: Of the batch.
      agree: From whether they end here to whether they end anywhere; called
        once the batch is there.
    """
    if self._in_graph:  # the same everywhere, or refused at the start
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
    """Raises OutOfRangeError, of which there is no operation."""
    if self._empty is None:
      with tf.init_scope(), tf.device('CPU:0'):
        self._empty = iter(tf.data.Dataset.range(0))
    return self._empty.get_next()  # `next` says StopIteration when eager

  def _noted(self, batch: Any) -> Any:
    """The batch without the cursor, which is kept."""
    assert self._cursor is not None
    batch, after = batch
    self._cursor.assign(after, read_value=False)
    return batch

  def first_batch(self) -> Any:
    """The whole of it, whatever a loop takes."""
    try:
      with pipeline_lib.explained(self._pipeline):
        whole = copy.copy(self)
        whole._taken, whole._device = self._pipeline, None
        return whole.take(whole.iterator(0), tf.constant(0, tf.int64))
    except tf.errors.OutOfRangeError:
      raise errors.InputError(
        'the data yields 0 batches; check its files and filters'
      ) from None


def _no_end() -> tf.Tensor:
  return tf.zeros([], tf.int64)

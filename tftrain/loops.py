"""The compiled inner loops: many steps in one call of a tf.function."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import tensorflow as tf

from tftrain import compiled
from tftrain import devices
from tftrain import errors
from tftrain import inputs
from tftrain import metrics
from tftrain import patches
from tftrain import stepsummaries
from tftrain import tasks
from tftrain import updates
from tftrain import workers as workers_lib

RUN, PAUSE, STOP = 0, 1, 2
"""What `Counters.stop` may say: go on; leave a training loop, to save; leave
any loop."""


@dataclasses.dataclass(frozen=True)
class Counters:
  """What a loop shares with its host.

  Attributes:
    step: int64, batches consumed.
    updates: int64, weight changes.
    skipped: int64, steps whose update was left out as it was not finite.
    in_a_row: int64, how many of the last steps were.
    stop: int32, RUN, PAUSE or STOP; set it, from any thread, and the loop ends
      before its next step.
    waited: float64, seconds spent waiting for input.
    workers: Who has to leave a loop at the same step.
  """

  step: tf.Variable
  updates: tf.Variable
  skipped: tf.Variable
  in_a_row: tf.Variable
  stop: tf.Variable
  waited: tf.Variable
  workers: workers_lib.Alone = workers_lib.ALONE

  def with_stop(self, stop: tf.Variable) -> 'Counters':
    """The same counters under somebody else's stop."""
    return dataclasses.replace(self, stop=stop)

  def read_state(self) -> dict[str, tf.Tensor]:
    return {
      name: variable.read_value() for name, variable in self._saved().items()
    }

  def write_state(self, state: Mapping[str, Any]) -> None:
    for name, variable in self._saved().items():
      variable.assign(state[name])

  def _saved(self) -> dict[str, tf.Variable]:
    return {
      'step': self.step,
      'updates': self.updates,
      'skipped_steps': self.skipped,
      'skipped_in_a_row': self.in_a_row,
    }

  @classmethod
  def make(cls, workers: workers_lib.Alone = workers_lib.ALONE) -> 'Counters':
    with tf.device('CPU:0'):
      return cls(
        step=tf.Variable(0, dtype=tf.int64, trainable=False),
        updates=tf.Variable(0, dtype=tf.int64, trainable=False),
        skipped=tf.Variable(0, dtype=tf.int64, trainable=False),
        in_a_row=tf.Variable(0, dtype=tf.int64, trainable=False),
        stop=tf.Variable(RUN, dtype=tf.int32, trainable=False),
        waited=tf.Variable(0.0, dtype=tf.float64, trainable=False),
        workers=workers,
      )


class Feed:
  """Where a loop takes its batches from: an iterator, or the graph itself."""

  def __init__(self, pipeline: inputs.Pipeline, seed: int):
    self._pipeline = pipeline
    self._seed = seed
    with tf.device('CPU:0'):
      first = pipeline.batch(seed, tf.constant(0, tf.int64))
    self._in_graph = first is not None
    # Where the next batch begins, if the step alone does not say it.
    self._cursor: tf.Variable | None = None
    self._saved: Any = None
    self._marked: tuple[int, list[int]] | None = None
    if pipeline.has_cursor:
      with tf.device('CPU:0'):
        self._cursor = tf.Variable([0, 0], dtype=tf.int64, trainable=False)

  @property
  def rows(self) -> int:
    """Of a batch on one replica; 1 where that is not known."""
    replicas = int(tf.distribute.get_strategy().num_replicas_in_sync)
    return max((self._pipeline.batch_size or 1) // replicas, 1)

  def iterator(self, start_step: int) -> Any:
    """What to give the loop so that it starts at `start_step`."""
    if self._in_graph:
      return None
    where: dict[str, Any] = {}
    if self._cursor is not None and start_step:
      where['cursor'] = self._cursor.numpy().tolist()
    with tf.device('CPU:0'):
      dataset = self._pipeline.dataset(self._seed, start_step, **where)
      iterator = iter(dataset)
      if self._saved is not None and start_step:
        inputs.load_iterator(iterator, self._saved)
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
      return self.take(None, tf.constant(step, tf.int64))
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
        saved = inputs.save_iterator(self.iterator(0))
      return {'iterator': tf.constant(saved)}
    return {'iterator': inputs.save_iterator(iterator)}

  def write_state(self, state: Mapping[str, Any]) -> None:
    if self._cursor is not None:
      self._cursor.assign(state['cursor'])
    self._saved = state.get('iterator')

  def take(self, iterator: Any, step: tf.Tensor) -> Any:
    """The batch of `step`; raises OutOfRangeError at the end of the data."""
    if self._in_graph:
      with tf.device('CPU:0'):
        return self._pipeline.batch(self._seed, step)
    try:
      batch = next(iterator)
    except StopIteration:  # running eagerly
      raise tf.errors.OutOfRangeError(None, None, 'end of data') from None
    if self._cursor is None:
      return batch
    batch, after = batch
    self._cursor.assign(after, read_value=False)
    return batch

  def first_batch(self) -> Any:
    try:
      with inputs.explained(self._pipeline):
        return self.take(self.iterator(0), tf.constant(0, tf.int64))
    except tf.errors.OutOfRangeError:
      raise errors.InputError(
        'the data yields 0 batches; check its files and filters'
      ) from None


def train_loop(
  task: tasks.Task,
  feed: Feed,
  counters: Counters,
  means: metrics.Means,
  measured: Callable[[tf.Tensor], updates.Measure],
  max_traces: int | None = None,
) -> compiled.Loop:
  """Compiles `run(iterator, n)`, which takes up to `n` training steps.

  It leaves early, at the exact step, when a stop is requested, when the data
  ends (an OutOfRangeError; all state is that of the last whole step) and when
  a loss or gradient is not finite.

  Args:
    task: What to train.
    feed: Where batches come from.
    counters: Counted up.
    means: Where the metrics go.
    measured: Of a step's number, whether to look at what its updates do.
    max_traces: How often it may be compiled.

  Returns:
    The function; it returns (whether all went well, loss, gradient norm) of the
    last step.
  """

  def run(iterator: Any, n: tf.Tensor) -> Any:
    def go_on(done: Any, well: Any, *_: Any) -> Any:
      return (done < n) & well & (counters.stop.read_value() == RUN)

    def take_step(done: Any, *_: Any) -> Any:
      batch = _timed_take(feed, iterator, counters)
      # Without a batch nothing may move, not even the seed of a dropout.
      with tf.control_dependencies(tf.nest.flatten(batch)):
        now = counters.step.read_value()
        measure = measured(now)
        with stepsummaries.recorded(now, measure.report):
          step = task.run_train_step(batch, measure)
      counters.updates.assign_add(
        tf.cast(step.finite, tf.int64), read_value=False
      )
      well = step.finite | _is_skipped(task, step, counters)
      means.add(step.sums)
      return done + 1, well, step.loss, step.gradient_norm

    task.engine.refresh()
    none_yet = (
      tf.zeros([], tf.int64),
      tf.constant(True),
      tf.zeros([]),
      tf.zeros([]),
    )
    return tf.while_loop(go_on, take_step, none_yet)[1:]

  return compiled.Loop(
    run, 'the training loop', max_traces, rows=feed.rows, resumed=True
  )


def _is_skipped(
  task: tasks.Task, step: updates.Step, counters: Counters
) -> tf.Tensor:
  """Whether a step that was not finite is left out and the run goes on."""
  if not task.engine.may_skip:
    return tf.constant(False)
  skipped = step.skipped
  limit = task.engine.options.max_skips
  if limit:
    in_a_row = counters.in_a_row.read_value() + 1
    in_a_row = tf.where(step.finite, tf.zeros_like(in_a_row), in_a_row)
    counters.in_a_row.assign(in_a_row, read_value=False)
    skipped |= ~step.finite & (in_a_row <= limit)
  counters.skipped.assign_add(tf.cast(skipped, tf.int64), read_value=False)
  return skipped


def single_step(
  task: tasks.Task,
) -> Callable[[Any], tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, Any]]]:
  """Compiles `run(batch)`: one training step, to be looked at.

  Returns:
    The function; it returns (whether all went well, loss, gradient norm,
    name of a variable -> whether its gradient is finite).
  """

  def run(batch: Any) -> Any:
    task.engine.refresh()
    finite: dict[str, tf.Tensor] = {}
    graph = tf.compat.v1.get_default_graph()
    apply = task.engine.apply

    def noting(gradients: Any) -> updates.Step:
      if tf.compat.v1.get_default_graph() is graph:  # no branch, no XLA
        found = zip(gradients.variables, gradients.values, strict=True)
        for variable, value in found:
          name = getattr(variable, 'path', variable.name)
          finite[name] = tf.reduce_all(tf.math.is_finite(value))
      return apply(gradients)

    with patches.overridden([(task.engine, 'apply', noting)]):
      step = task.run_train_step(batch)
    return step.finite, step.loss, step.gradient_norm, finite

  return tf.function(run, autograph=False)  # type: ignore[no-any-return]


def eval_loop(
  task: tasks.Task, feed: Feed, counters: Counters, means: metrics.Means
) -> compiled.Loop:
  """Compiles `run(iterator, n)`, which evaluates up to `n` batches."""

  def run(iterator: Any, n: tf.Tensor) -> Any:
    def go_on(done: Any) -> Any:
      return (done < n) & (counters.stop.read_value() < STOP)

    def take_batch(done: Any) -> Any:
      batch = _timed_take(feed, iterator, counters)
      with stepsummaries.silent('in an evaluation'):
        means.add(task.eval_step(batch))
      return (done + 1,)

    return tf.while_loop(go_on, take_batch, (tf.zeros([], tf.int64),))

  return compiled.Loop(run, 'an evaluation')


def _timed_take(feed: Feed, iterator: Any, counters: Counters) -> Any:
  """Takes a batch, counts it, and adds up how long it was waited for."""
  begun = devices.timestamp()
  with tf.control_dependencies([begun]):
    batch = feed.take(iterator, counters.step.read_value())
  # The edge from the batch keeps the count right when there is none.
  with tf.control_dependencies(tf.nest.flatten(batch)):
    counters.step.assign_add(1, read_value=False)
    counters.waited.assign_add(devices.timestamp() - begun, read_value=False)
    counters.workers.agree(counters.stop)
  return batch

"""Compiled inner loops: many steps in one call of a tf.function."""

from collections.abc import Callable
import contextlib
from typing import Any

import tensorflow as tf

from tftrain.distribute import devices
from tftrain.interop import autograph
from tftrain.interop import patching
from tftrain.interop import rng
from tftrain.step import step_summary
from tftrain.step import update_options
from tftrain.task import task as task_lib
from tftrain.train import counters as counters_lib
from tftrain.train import feed as feed_lib
from tftrain.train import metrics
from tftrain.train import retracing

# The Task methods that see a whole training batch.
_TRAINING = ('train_step', 'minimize', 'gradients')


def _is_own(task: task_lib.Task, *names: str) -> bool:
  """Returns whether the user overrides one of these methods."""
  return any(
    getattr(getattr(task, name), '__func__', None)
    is not getattr(task_lib.Task, name)
    for name in names
  )


def train_loop(
  task: task_lib.Task,
  feed: feed_lib.Feed,
  counters: counters_lib.Counters,
  means: metrics.Means,
  measured: Callable[[tf.Tensor], update_options.Measure],
  max_traces: int | None = None,
) -> retracing.Loop:
  """Compiles `run(iterator, n)`, which takes up to `n` training steps.

  The loop ends early, at the exact step, on a stop request, at the end of the
  data (OutOfRangeError; all state is that of the last complete step), and at a
  loss or gradient that is not finite.

  Args:
    task: The Task to train.
    feed: The training batches.
    counters: The Counters that the loop increments.
    means: The running means that the metrics are added to.
    measured: Returns the measurements to take, given the step number.
    max_traces: Most traces before an error; None means no limit.

  Returns:
    The Loop. It returns (True if the run can go on, loss, gradient norm) of the
    last step.
  """

  feed.deal(counters.workers.rows, whole=_is_own(task, *_TRAINING))

  def run(iterator: Any, n: tf.Tensor) -> Any:
    begun = counters.step.read_value()
    due = measured(begun + n)  # blocks end where a measurement is due
    take = _taker(feed, iterator, begun, n, counters, at_once=True)

    def go_on(done: Any, well: Any, *_: Any) -> Any:
      return (
        (done < n) & well & (counters.stop.read_value() == counters_lib.RUN)
      )

    def take_step(done: Any, *_: Any) -> Any:
      batch = take(done)
      # Nothing may change at the end of the data, not even a dropout seed.
      with tf.control_dependencies(tf.nest.flatten(batch)):
        measure = due.only_if(done == n - 1)
        with (
          step_summary.recorded(begun + done + 1, measure.report),
          feed.held(),
          task.recorded(measure) as call,
        ):
          call.result = autograph.converted(task.train_step)(batch)
      means.add(call.step.sums)
      well = call.step.finite
      if task.step_runner.may_skip:
        well, tally = tallied(task, call.step, counters.tally())
        counters.note(tally)
      return done + 1, well, call.step.loss, call.step.gradient_norm

    task.step_runner.refresh()
    return tf.while_loop(go_on, take_step, none_yet())[1:]

  return retracing.Loop(
    run, 'the training loop', max_traces, rows=feed.rows, resumed=True
  )


def none_yet() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
  """Returns (steps done, whether the run can go on, loss, gradient norm)."""
  return (
    tf.zeros([], tf.int64),
    tf.constant(True),
    tf.zeros([]),
    tf.zeros([]),
  )


def tallied(
  task: task_lib.Task, step: update_options.Step, tally: counters_lib.Tally
) -> tuple[tf.Tensor, counters_lib.Tally]:
  """Counts a Step that may be skipped; returns whether the run can go on.

  A step that is not finite is skipped, so that the run goes on, if the loss
  scale could be lowered or `Update.max_skips` allows it.
  """
  skipped, in_a_row = step.skipped, tally.in_a_row
  limit = task.step_runner.options.max_skips
  if limit:
    in_a_row = tf.where(step.finite, tf.zeros_like(in_a_row), in_a_row + 1)
    skipped |= ~step.finite & (in_a_row <= limit)
  return step.finite | skipped, counters_lib.Tally(
    tally.without_update + tf.cast(~step.finite, tf.int64),
    tally.skipped + tf.cast(skipped, tf.int64),
    in_a_row,
  )


def single_step(
  task: task_lib.Task, *, in_xla: bool = False
) -> Callable[[Any], tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, Any]]]:
  """Compiles `run(batch)`: one training step, for debugging.

  Args:
    task: The Task, built already.
    in_xla: Whether XLA compiles the step.

  Returns:
    The function. It returns (whether the step is finite, loss, gradient norm,
    name of a variable -> whether its gradient is finite).
  """

  def run(batch: Any) -> Any:
    finite: dict[str, tf.Tensor] = {}
    graph = tf.compat.v1.get_default_graph()

    def noting(apply: Callable[..., update_options.Step]) -> Any:
      def note_and_apply(gradients: Any, *args: Any) -> update_options.Step:
        if tf.compat.v1.get_default_graph() is graph:  # no branch, not XLA
          found = zip(gradients.variables, gradients.values, strict=True)
          for variable, value in found:
            name = getattr(variable, 'path', variable.name)
            finite[name] = tf.reduce_all(tf.math.is_finite(value))
        return apply(gradients, *args)

      return note_and_apply

    appliers = task.step_runner.appliers().values()
    with (
      patching.overridden(
        (applier, 'apply_if_finite', noting(applier.apply_if_finite))
        for applier in appliers
      ),
      rng.fast_in_xla() if in_xla else contextlib.nullcontext(),
      task.recorded(in_xla=in_xla) as call,
    ):
      call.result = autograph.converted(task.train_step)(batch)
    step = call.step
    return step.finite, step.loss, step.gradient_norm, finite

  return tf.function(  # type: ignore[no-any-return]
    run, autograph=False, jit_compile=in_xla or None
  )


def eval_loop(
  task: task_lib.Task,
  feed: feed_lib.Feed,
  counters: counters_lib.Counters,
  means: metrics.Means,
) -> retracing.Loop:
  """Compiles `run(iterator, n)`, which evaluates up to `n` batches.

  Args:
    task: The Task to evaluate.
    feed: The evaluation batches.
    counters: The Counters that the loop increments.
    means: The running means that the metrics are added to.
  """

  feed.deal(counters.workers.rows, whole=_is_own(task, 'eval_step'))

  def run(iterator: Any, n: tf.Tensor) -> Any:
    begun = counters.step.read_value()
    take = _taker(feed, iterator, begun, n, counters, at_once=False)

    def go_on(done: Any) -> Any:
      return (done < n) & (counters.stop.read_value() < counters_lib.STOP)

    def take_batch(done: Any) -> Any:
      batch = take(done)
      with step_summary.silent('in an evaluation'), feed.held():
        means.add(task.eval_step(batch))
      return (done + 1,)

    return tf.while_loop(go_on, take_batch, (tf.zeros([], tf.int64),))

  return retracing.Loop(run, 'an evaluation')


def _taker(
  feed: feed_lib.Feed,
  iterator: Any,
  begun: tf.Tensor,
  n: tf.Tensor,
  counters: counters_lib.Counters,
  *,
  at_once: bool,
) -> Callable[[tf.Tensor], Any]:
  """Returns `take(done)`, which takes a batch and increments the step.

  The time that an iterator is waited for counts as data stall.

  Args:
    feed: The batches.
    iterator: The iterator; None if the graph makes the batches.
    begun: The first step.
    n: Number of steps.
    counters: The Counters to increment.
    at_once: Whether all row numbers may be made at once; see `Feed.made`.
  """
  several = counters.workers.count > 1
  made = None if several else feed.made(begun, n, at_once=at_once)

  def note_wait(since: tf.Tensor) -> None:
    waited = devices.timestamp() - since
    counters.waited.assign_add(waited, read_value=False)

  def take(done: tf.Tensor) -> Any:
    if made is not None:
      counters.step.assign_add(1, read_value=False)
      return made(done)
    since = devices.timestamp()

    def agree(ended: tf.Tensor) -> tf.Tensor:
      with tf.control_dependencies([ended]):
        note_wait(since)  # excludes the wait for other workers
        return counters.workers.agree(counters.stop, ended)

    with tf.control_dependencies([since]):
      if several:
        batch = feed.take_together(iterator, begun + done, agree)
      else:
        batch = feed.take(iterator, begun + done)
    # The dependency on the batch leaves the step unchanged at the end of data.
    with tf.control_dependencies(tf.nest.flatten(batch)):
      counters.step.assign_add(1, read_value=False)
      if not several:
        note_wait(since)
    return batch

  return take

"""Block loop: whole blocks of steps as one XLA program (`jit='block'`).

A `tf.while_loop` pays for each operation of each step; one XLA program pays
once. Batches come from outside: row numbers of arrays in memory, or several
batches stacked, which a thread takes while the block before runs. Where blocks
are cut changes no result.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import re
import time
from typing import Any, NamedTuple

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.interop import autograph
from tftrain.interop import rng
from tftrain.step import step_summary
from tftrain.step import update_options
from tftrain.task import task as task_lib
from tftrain.train import blocks as blocks_lib
from tftrain.train import counters as counters_lib
from tftrain.train import feed as feed_lib
from tftrain.train import inner_loop
from tftrain.train import jit
from tftrain.train import metrics
from tftrain.train import retracing

# Seconds of a block. A stop request is looked at between blocks only.
_SECONDS = 0.02


def train_loop(
  task: task_lib.Task,
  feed: feed_lib.Feed,
  counters: counters_lib.Counters,
  means: metrics.Means,
  measured: Callable[[tf.Tensor], update_options.Measure],
  max_traces: int | None = None,
) -> 'BlockLoop':
  """Compiles the loop, as `inner_loop.train_loop` does without XLA."""
  silenced: list[bool] = []

  def program(given: _Given, n: tf.Tensor) -> Any:
    task.step_runner.refresh()
    due = measured(given.step + n)

    def go_on(done: Any, well: Any, *_: Any) -> Any:
      return (done < n) & well

    def take_step(
      done: Any, well: Any, loss: Any, norm: Any, tally: _AnyTally
    ) -> Any:
      del well, loss, norm
      batch = feed.batch_at(given.stacked, given.offset + done)
      measure = due.only_if(done == n - 1)
      with (
        step_summary.silent(noted=silenced),
        rng.fast_in_xla(),
        task.recorded(measure, in_xla=True) as call,
      ):
        call.result = autograph.converted(task.train_step)(batch)
      means.add(call.step.sums)
      well = call.step.finite
      if isinstance(tally, counters_lib.Tally):
        well, tally = inner_loop.tallied(task, call.step, tally)
      return done + 1, well, call.step.loss, call.step.gradient_norm, tally

    return tf.while_loop(
      go_on, take_step, (*inner_loop.none_yet(), given.tally)
    )

  return BlockLoop(program, task, feed, counters, max_traces, silenced)


_AnyTally = counters_lib.Tally | tuple[()]
"""A Tally; empty if no step may be skipped."""


class _Given(NamedTuple):
  """What the program gets of the host, which counts outside of it.

  Attributes:
    stacked: Batches, for `Feed.batch_at`.
    offset: Index of the first batch.
    step: Number of steps before it.
    tally: The Tally before it.
  """

  stacked: Any
  offset: tf.Tensor
  step: tf.Tensor
  tally: _AnyTally


class BlockLoop(retracing.Loop):
  """A compiled loop that takes steps in blocks of about 20 ms.

  Args:
    program: `program(given, n)`, for XLA to compile.
    task: The Task.
    feed: The training batches.
    counters: The Counters of the loop.
    max_traces: Most traces of the loop before an error; None means no limit.
    silenced: Not empty after a trace in which tf.summary was called.
  """

  def __init__(
    self,
    program: Callable[[Any, tf.Tensor], Any],
    task: task_lib.Task,
    feed: feed_lib.Feed,
    counters: counters_lib.Counters,
    max_traces: int | None,
    silenced: Sequence[bool] = (),
  ):
    super().__init__(
      program,
      'the training loop',
      max_traces,
      rows=feed.rows,
      resumed=True,
      jit_compile=True,
    )
    self._may_skip = task.step_runner.may_skip
    self._none_yet = [*inner_loop.none_yet()[1:]]
    self._feed = feed
    self._counters = counters
    self._silenced = silenced
    self._takes: dict[Any, Any] = {}
    self._most = 1  # steps of a block, so that it takes `_SECONDS`

  def __call__(self, batches: blocks_lib.Blocks, n: tf.Tensor) -> Any:
    result, waited = self._none_yet, 0.0
    step, tally = int(self._counters.step.numpy()), self._tally()
    last = step + int(n)
    try:
      while step < last:
        is_running = self._is_running()
        if not (is_running or (batches.taken and not batches.ahead)):
          break
        taken = batches.held(step) or self._taking(batches, step, last - step)
        stacked, ready = taken.result()
        count = min(last - step, ready, self._most)
        if count == ready and is_running:
          self._take_ahead(batches, step + count, last, int(n))
        begun = time.perf_counter()
        given = _given(stacked, taken.offset, step, tally)
        done, *result, tally = super().__call__(
          given, tf.constant(count, tf.int64)
        )
        step += int(done)
        waited += taken.waited
        self._fit(count, time.perf_counter() - begun + taken.waited)
        batches.use(taken, int(done))
        if not result[0]:
          break
    finally:
      if not self._feed.in_memory:  # an iterator is used by one at a time
        for later in batches.taken:
          later.join()
      self._note(step, tally, waited)
    return result

  def _key(self, iterator: Any) -> Any:
    """Returns the shapes of the batches."""
    return [leaf.shape for leaf in tf.nest.flatten(iterator.stacked)]

  def _note(self, step: int, tally: _AnyTally, waited: float) -> None:
    """Sets the counters, which are read between the calls only."""
    self._counters.step.assign(step, read_value=False)
    self._counters.waited.assign_add(waited, read_value=False)
    if isinstance(tally, counters_lib.Tally):
      self._counters.note(tally)

  def _tally(self) -> _AnyTally:
    return self._counters.tally() if self._may_skip else ()

  def _is_running(self) -> bool:
    return int(self._counters.stop.numpy()) == counters_lib.RUN

  def _take_ahead(
    self, batches: blocks_lib.Blocks, step: int, last: int, n: int
  ) -> None:
    """Begins to take the batches of the next block, in a thread.

    Args:
      batches: The batches.
      step: The first step of the next block.
      last: The last step of this call.
      n: Number of steps of this call.
    """
    more = last - step
    if not more and self._feed.in_memory:  # for the next calls, undivided
      more = max(1, self._most // n) * n
    if more:
      batches.taken.append(self._taking(batches, step, more))
      batches.taken[0].start()

  def _taking(
    self, batches: blocks_lib.Blocks, step: int, left: int
  ) -> blocks_lib.Taken:
    """Returns the batches of the next block, not taken yet."""
    block, most = batches.at(step)
    kind = block if isinstance(block, str) else block is None
    begin, n = (
      tf.constant(value, tf.int64)
      for value in (step, min(left, most, self._most))
    )
    if kind not in self._takes:  # traced here: a thread has no strategy
      take = tf.function(self._feed.take_block, autograph=False)
      self._takes[kind] = take.get_concrete_function(block, begin, n)
    given = (begin, n) if self._feed.in_memory else (block, begin, n)
    take = functools.partial(self._takes[kind], *given)
    return blocks_lib.Taken(take, step, daemon=not self._feed.in_memory)

  def choose(self, batches: blocks_lib.Blocks) -> jit.Choice:
    """Traces, and compiles if that is what to do; returns the Choice."""
    example = self._traced(batches)
    choice = jit.of_step(self.operations, self.flops)
    if self._silenced:
      return jit.Choice('off', 'tf.summary is called in a step')
    what = self._compile(example) if choice.jit == 'block' else None
    return jit.Choice('off', f'XLA cannot compile {what}') if what else choice

  def prepare(self, batches: blocks_lib.Blocks, n: tf.Tensor) -> None:
    """Compiles with XLA, without a step."""
    if self.compile_seconds is not None:
      return
    example = self._traced(batches)
    if self._silenced:
      logging.warning(
        'tf.summary writes nothing where XLA compiles the block (Update.jit).'
      )
    what = self._compile(example)
    if what:
      raise errors.ConfigError(
        f"Update.jit = 'block': XLA cannot compile {what}; set jit='off'"
      )

  def _traced(self, batches: blocks_lib.Blocks) -> _Given:
    """Traces; returns what `program` gets, of the shapes of the first block."""
    step = int(self._counters.step.numpy())
    block, _ = batches.at(step)
    example = _given(self._feed.empty_block(block), 0, step, self._tally())
    super().prepare(example, tf.constant(0, tf.int64))
    return example

  def _compile(self, example: _Given) -> str | None:
    """Compiles with XLA; returns what it cannot compile, if anything."""
    begun = time.perf_counter()
    try:
      super().__call__(example, tf.constant(0, tf.int64))
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as e:
      return _unsupported(e)
    assert self.compile_seconds is not None  # that of the trace
    self.compile_seconds += time.perf_counter() - begun
    return None

  def _fit(self, count: int, seconds: float) -> None:
    """Fits the length of the next blocks to what this one took."""
    if count < self._most and seconds < _SECONDS:
      return  # cut short, so it says little
    fitting = int(count * _SECONDS / max(seconds, 1e-6))
    self._most = max(1, min(fitting, 2 * self._most, blocks_lib.MOST))


def _given(stacked: Any, offset: int, step: int, tally: _AnyTally) -> _Given:
  offset, step = (tf.constant(value, tf.int64) for value in (offset, step))
  return _Given(stacked, offset, step, tally)


def _unsupported(error: tf.errors.OpError) -> str:
  """Returns the operation that XLA cannot compile, and its origin."""
  text = str(error)
  found = re.search(r'unsupported operations[^:]*:\s*(\w+)', text)
  what = f'the operation {found[1]}' if found else errors.one_line(error)
  node = re.search(r'\{\{node ([^}]+)\}\}', text)
  where = f' ({node[1]})' if node else ''
  return f'{what}{where} of the step'

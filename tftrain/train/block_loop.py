"""Block loop: a block of steps as one XLA program (`Update.jit = 'block'`).

A `tf.while_loop` pays for each operation of each step; one XLA program pays
once. Batches come from outside: row numbers of arrays in memory, or several
batches stacked. Where blocks are cut changes no result.
"""

from collections.abc import Callable
from collections.abc import Sequence
import re
import time
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.distribute import devices
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
  """Compiles `run(blocks, n)`, as `inner_loop.train_loop` does with batches."""
  silenced: list[bool] = []

  def program(at: Callable[[tf.Tensor], Any], n: tf.Tensor) -> Any:
    due = measured(counters.step.read_value() + n)

    def go_on(done: Any, well: Any, *_: Any) -> Any:
      return (done < n) & well

    def take_step(done: Any, *_: Any) -> Any:
      batch = at(done)
      counters.step.assign_add(1, read_value=False)
      measure = due.only_if(done == n - 1)
      with (
        step_summary.silent(noted=silenced),
        rng.fast_in_xla(),
        task.recorded(measure, in_xla=True) as call,
      ):
        call.result = autograph.converted(task.train_step)(batch)
      well = inner_loop.note(task, call.step, counters, means)
      return done + 1, well, call.step.loss, call.step.gradient_norm

    return tf.while_loop(go_on, take_step, inner_loop.none_yet())[1:]

  def run(block: Any, n: tf.Tensor) -> Any:
    task.step_runner.refresh()
    begun = devices.timestamp()
    with tf.control_dependencies([begun]):
      stacked, at, n = feed.block(block, counters.step.read_value(), n)
    with tf.control_dependencies(tf.nest.flatten(stacked)):
      waited = devices.timestamp() - begun
      counters.waited.assign_add(waited, read_value=False)

    in_xla = tf.function(
      lambda stacked, n: program(lambda index: at(stacked, index), n),
      jit_compile=True,
      autograph=False,
    )
    return in_xla(stacked, n)

  return BlockLoop(run, counters, max_traces, rows=feed.rows, silenced=silenced)


class BlockLoop(retracing.Loop):
  """A compiled loop that takes steps in blocks of about 20 ms.

  Args:
    run: `run(block, n)`, the function to compile.
    counters: The Counters of the loop.
    max_traces: Most traces of the loop before an error; None means no limit.
    rows: Batch size to assume for FLOPs if the static batch size is unknown.
    silenced: Not empty after a trace in which tf.summary was called.
  """

  def __init__(
    self,
    run: Callable[[Any, tf.Tensor], Any],
    counters: counters_lib.Counters,
    max_traces: int | None,
    *,
    rows: int,
    silenced: Sequence[bool] = (),
  ):
    super().__init__(
      run, 'the training loop', max_traces, rows=rows, resumed=True
    )
    self._counters = counters
    self._silenced = silenced
    self._most = 1  # steps of a block, so that it takes `_SECONDS`

  def __call__(self, batches: blocks_lib.Blocks, n: tf.Tensor) -> Any:
    result = inner_loop.none_yet()[1:]
    left = int(n)
    while left and int(self._counters.stop.numpy()) == counters_lib.RUN:
      before = int(self._counters.step.numpy())
      block, ready = batches.at(before)
      count = min(left, ready, self._most)
      begun = time.perf_counter()
      result = super().__call__(block, tf.constant(count, tf.int64))
      well = bool(result[0])
      self._fit(count, time.perf_counter() - begun)
      taken = int(self._counters.step.numpy()) - before
      left -= taken
      if not well:
        break
    return result

  def choose(self, batches: blocks_lib.Blocks) -> jit.Choice:
    """Traces and compiles, if that is what to do; returns the Choice."""
    block, _ = batches.at(int(self._counters.step.numpy()))
    super().prepare(block, tf.constant(0, tf.int64))
    choice = jit.of_step(self.operations, self.flops)
    if self._silenced:
      return jit.Choice('off', 'tf.summary is called in a step')
    what = self._compile(block) if choice.jit == 'block' else None
    return jit.Choice('off', f'XLA cannot compile {what}') if what else choice

  def prepare(self, batches: blocks_lib.Blocks, n: tf.Tensor) -> None:
    """Compiles with XLA, without a step."""
    if self.compile_seconds is not None:
      return
    block, _ = batches.at(int(self._counters.step.numpy()))
    super().prepare(block, tf.constant(0, tf.int64))
    if self._silenced:
      logging.warning(
        'tf.summary writes nothing where XLA compiles the block (Update.jit).'
      )
    what = self._compile(block)
    if what:
      raise errors.ConfigError(
        f"Update.jit = 'block': XLA cannot compile {what}; set jit='off'"
      )

  def _compile(self, block: Any) -> str | None:
    """Compiles with XLA; returns what it cannot compile, if anything."""
    begun = time.perf_counter()
    try:
      super().__call__(block, tf.constant(0, tf.int64))
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as e:
      return _unsupported(e)
    assert self.compile_seconds is not None  # that of the trace
    self.compile_seconds += time.perf_counter() - begun
    return None

  def _fit(self, count: int, seconds: float) -> None:
    """Fits the length of the next blocks to what this one took."""
    fitting = int(count * _SECONDS / max(seconds, 1e-6))
    self._most = max(1, min(fitting, 2 * self._most, blocks_lib.MOST))


def _unsupported(error: tf.errors.OpError) -> str:
  """Returns the operation that XLA cannot compile, and its origin."""
  text = str(error)
  found = re.search(r'unsupported operations[^:]*:\s*(\w+)', text)
  what = f'the operation {found[1]}' if found else errors.one_line(error)
  node = re.search(r'\{\{node ([^}]+)\}\}', text)
  where = f' ({node[1]})' if node else ''
  return f'{what}{where} of the step'

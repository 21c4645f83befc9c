"""Loop: a tf.function that is traced once; retraces are logged with a cause."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import time
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data import pipeline as pipeline_lib
from tftrain.train import flops

_RANDOM = {
  'RandomStandardNormal',
  'RandomUniform',
  'RandomUniformInt',
  'TruncatedNormal',
  'ParameterizedTruncatedNormal',
  'Multinomial',
  'RandomGammaV2',
  'RandomPoissonV2',
  'RandomShuffle',
}


class Loop:
  """A compiled loop that is traced once and creates no variables.

  A retrace costs time, so it is logged with its cause and a remedy.

  Args:
    run: `run(iterator, n)`, the function to compile.
    name: Name of the loop in messages.
    max_traces: Most traces before an error; None means no limit.
    rows: Batch size to assume for FLOPs if the static batch size is unknown.
    resumed: Whether checkpoints must hold all state that the loop changes.
    jit_compile: Whether XLA compiles `run`.

  Raises:
    InputError: If a call needs a trace beyond `max_traces`.
    TaskError: If `run` creates a variable.
  """

  def __init__(
    self,
    run: Callable[[Any, tf.Tensor], Any],
    name: str,
    max_traces: int | None = None,
    *,
    rows: int = 1,
    resumed: bool = False,
    jit_compile: bool | None = None,
  ):
    self._run = run
    self._name = name
    self._max_traces = max_traces
    self._rows = rows
    self._resumed = resumed
    self.context: Callable[[], Any] = contextlib.nullcontext
    """Makes the context in which it is traced."""
    self.compile_seconds: float | None = None
    """Seconds to trace and compile; None before that."""
    self.flops = 0
    """Floating-point operations of a step; 0 before the loop is traced."""
    self.operations: frozenset[str] = frozenset()
    """The kinds of operations; empty before the loop is traced."""
    self._jit_compile = jit_compile
    self._compiled: Any = self._function()
    self._writes_summaries = False
    self._seen: Any = object()  # the key of the newest iterator
    self._specs: list[Any] = []  # of all iterators
    # The trace for `_seen`: calling it takes half the time of a tf.function.
    self._trace: Any = None

  def __call__(self, iterator: Any, n: tf.Tensor) -> Any:
    key = self._key(iterator)
    if key != self._seen:
      self._watch(iterator)
      self._seen, self._trace = key, None
    if self._trace is None:
      self._trace = self._traced_for(iterator, n)
    return self._trace(iterator, n)

  def _key(self, iterator: Any) -> Any:
    """Returns what is equal where the trace of an earlier call will do."""
    return iterator

  def _traced_for(self, iterator: Any, n: tf.Tensor) -> Any:
    if tf.config.functions_run_eagerly():
      return self._run_eagerly
    with self._tracing():
      return self._compiled.get_concrete_function(iterator, n)

  def _run_eagerly(self, iterator: Any, n: tf.Tensor) -> Any:
    with self._tracing():
      return self._compiled(iterator, n)

  @contextlib.contextmanager
  def _tracing(self) -> Iterator[None]:
    with self.context(), tf.variable_creator_scope(refuse_variable):
      yield

  def _function(self) -> Any:
    return tf.function(
      self._run, autograph=False, jit_compile=self._jit_compile
    )

  @property
  def traces(self) -> int:
    return int(self._compiled.experimental_get_tracing_count())

  def record_to(self, context: Callable[[], Any]) -> None:
    """Sets the context of tracing, such as a default tf.summary writer.

    A compiled function keeps its writer. If it writes summaries, it is compiled
    again.

    Args:
      context: Returns the context manager.
    """
    self.context = context
    if self._writes_summaries:
      self._compiled = self._function()
      self._trace = None
      self.compile_seconds = None
      self._specs.clear()

  def prepare(self, iterator: Any, n: tf.Tensor) -> None:
    """Compiles without running, once; warns of unsaved random state."""
    if self.compile_seconds is not None:
      return
    begun = time.perf_counter()
    if not tf.config.functions_run_eagerly():
      with self._tracing():
        traced = self._compiled.get_concrete_function(iterator, n)
      self._look_at(traced.graph.as_graph_def(add_shapes=True))
    self.compile_seconds = time.perf_counter() - begun

  def _look_at(self, definition: Any) -> None:
    nodes = [*definition.node]
    for function in definition.library.function:
      nodes += function.node_def
    operations = {node.op for node in nodes}
    self.operations = frozenset(operations)
    self._writes_summaries = 'WriteSummary' in operations
    self.flops = flops.of_step(definition, self._rows)
    random = sorted(operations & _RANDOM)
    if random and self._resumed:
      logging.warning(
        'The step draws random numbers with %s, whose state no checkpoint '
        'holds: a resumed run will differ. Use keras.random with a '
        'SeedGenerator that is an attribute of the Task.',
        ', '.join(random),
      )

  def _watch(self, iterator: Any) -> None:
    """Logs the cause if the iterator needs another trace.

    Raises:
      InputError: If that exceeds `max_traces`.
    """
    spec = getattr(iterator, 'element_spec', None)
    if spec in self._specs or tf.config.functions_run_eagerly():
      return
    self._specs.append(spec)
    count = len(self._specs)
    if count == 1:
      return
    what = (
      f'{self._name} is compiled again, {count} times by now, as '
      f'{changed(self._specs[-2], spec)}'
    )
    if self._max_traces is not None and count > self._max_traces:
      raise errors.InputError(f'{what} (max_traces is {self._max_traces})')
    logging.warning('%s.', what)


def changed(old: Any, new: Any) -> str:
  """Returns the difference of two element_specs, with a remedy."""
  before, after = (
    pipeline_lib.leaves_by_expression(spec) for spec in (old, new)
  )
  if list(before) != list(after):
    names = [name for name in after if name not in before]
    gone = [name for name in before if name not in after]
    parts = [f'has {", ".join(names)}'] if names else []
    parts += [f'has no {", ".join(gone)} any more'] if gone else []
    return f'a batch {" and ".join(parts)}; give each batch the same structure'
  name = next(name for name in after if before[name] != after[name])
  was, now = before[name], after[name]
  specs = pipeline_lib.described(was), pipeline_lib.described(now)
  what = f'{name} was {specs[0]} and is {specs[1]}'
  if getattr(was, 'dtype', None) != getattr(now, 'dtype', None):
    return f'{what}; cast it where the data is made (tf.cast)'
  return (
    f'{what}; make all batches of one shape (drop_remainder=True, padding), '
    'or say which sizes vary in the element_spec of the data'
  )


def refuse_variable(next_creator: Any, **kwargs: Any) -> Any:
  del next_creator
  raise errors.TaskError(
    f'a step created the variable {kwargs.get("name") or "?"}; create all '
    'variables when the model is first called, or in the constructor'
  )

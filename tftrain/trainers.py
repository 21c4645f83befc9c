"""Trainer: the host loop around one compiled inner loop."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import time
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import actions as actions_lib
from tftrain import builds
from tftrain import errors
from tftrain import groups
from tftrain import inputs
from tftrain import loops
from tftrain import metrics
from tftrain import reports
from tftrain import strategies
from tftrain import supervised
from tftrain import tasks
from tftrain import updates as updates_lib

# The steps whose gradients are looked at, variable by variable.
_INSPECTED = (1, 100)


class Trainer:
  """Takes steps and reports.

  >>> trainer = Trainer(task, Arrays((x, y), batch_size=32))
  >>> trainer.train(1000, [log_progress])

  Everything is checked here, before the first step: the data is read once, the
  model built, the loss computed on a real batch.

  Args:
    task: What to learn, made inside `strategy.scope()`.
    data: A Pipeline, a `tf.data.Dataset` of global batches, a function that
      makes one, or a re-iterable of batches.
    strategy: A `tf.distribute.Strategy`; None means one device.
    steps_per_loop: Most steps in one call of the compiled loop. It changes
      nothing but speed: blocks end wherever something is due.
    log_every: Steps over which train metrics are averaged and reported.
    seed: Seed of the data's order.
    update: How a batch becomes new weights; None means plain gradient descent.

  Raises:
    InputError: No data, or a batch the model or the replicas cannot take.
    TaskError: A model or loss that cannot be trained.
  """

  def __init__(
    self,
    task: tasks.Task,
    data: Any,
    *,
    strategy: tf.distribute.Strategy | None = None,
    steps_per_loop: int = 100,
    log_every: int = 100,
    seed: int = 0,
    update: updates_lib.Update | None = None,
  ):
    for name, value in (
      ('steps_per_loop', steps_per_loop),
      ('log_every', log_every),
    ):
      if value < 1:
        raise errors.ConfigError(f'{name} must be at least 1, got {value}')
    self.task = task
    self._strategy = strategy or tf.distribute.get_strategy()
    self._pipeline = inputs.as_pipeline(data, training=True)
    self._steps_per_loop = steps_per_loop
    self._log_every = log_every
    self._seed = seed
    if self._pipeline.batch_size:
      strategies.check_divides(self._pipeline.batch_size, self._strategy)
    self._feed = loops.Feed(self._pipeline, seed)
    self._counters = loops.Counters.make()
    self._means = metrics.Means(self._build(update or updates_lib.Update()))
    self._keras_metrics = metrics.KerasMetrics(task.metrics)
    metrics.check_names(self._means.names, self._keras_metrics.names)
    self._loop = loops.train_loop(
      task, self._feed, self._counters, self._means, self._is_measured
    )
    self._position: tuple[int, Any] | None = None
    self._start_step = 0
    self._step = 0
    self._stop_requested = False
    self._ended: int | None = None  # the `steps` asked for when it ended early
    self._last_logged = 0
    self._reported = 0
    self._seconds = 0.0
    self.compile_seconds: float | None = None
    """How long it took to trace and compile the loop; None before that."""

  @property
  def step(self) -> int:
    """Batches consumed so far."""
    return self._step

  @property
  def tags(self) -> tuple[str, ...]:
    """The names of the means and Keras metrics that are reported."""
    return (*self._means.names, *self._keras_metrics.names)

  @property
  def updates(self) -> int:
    """Steps so far that were finite, and so changed weights."""
    return int(self._counters.updates.numpy())

  @property
  def traces(self) -> int:
    """How often the loop was traced; more than once is a waste to look into."""
    return self._loop.traces

  @property
  def stop_variable(self) -> tf.Variable:
    """Evaluators watch it too, so that a stop is not kept waiting."""
    return self._counters.stop

  def example_features(self) -> Any:
    """A real batch of what the model takes, to try an export on."""
    return self._features

  def request_stop(self) -> None:
    """Ends the run after the step in progress; safe from any thread."""
    self._stop_requested = True
    self._counters.stop.assign(True)

  def last_step(self, steps: int) -> int:
    """`steps`, or where the data is known to end before that."""
    if not isinstance(steps, int):
      raise errors.ConfigError(f'steps must be a whole number, got {steps!r}')
    if self._ended is not None and steps <= self._ended:
      return self._step
    ends = self._pipeline.num_steps
    return steps if ends is None else min(steps, ends)

  def train(
    self, steps: int, actions: Sequence[reports.Action] = ()
  ) -> reports.Report | None:
    """Trains until `steps` steps are done, counted from the run's beginning.

    Returns:
      The last Report with scalars; None if there was nothing left to do.

    Raises:
      NonFiniteError: The loss or a gradient became NaN or infinite.
    """
    last = None
    for last in self.steps(steps, actions):
      pass
    return last

  def steps(
    self, steps: int, actions: Sequence[reports.Action] = ()
  ) -> Iterator[reports.Report]:
    """The same engine in your own loop: yields a Report every `log_every`.

    >>> for report in trainer.steps(1000, [Every(100, checkpointer)]):
    ...   print(report.step, report.scalars['loss'])
    """
    if callable(actions):
      raise errors.ConfigError(
        f'actions is {type(actions).__name__}, not a list; write [action]'
      )
    last_step = self.last_step(steps)
    while not self.is_done(steps):
      ended = False
      if self._reported == self._step:  # else what was interrupted comes first
        until = self._next_event(self._step, last_step, actions)
        ended = self._block(until) and not self._stop_requested
        last_step = self._step if ended else last_step
      report = self._report(last_step, stopping=self._stop_requested)
      if not report.stopping:
        report = self._tell(actions, report, steps, ended)
      stopping = self._stop_requested
      if stopping:
        # Nothing of this step counts as reported that the stop cut short: the
        # checkpoint says so, and the resumed run reports it first.
        actions_lib.dispatch(actions, self._report(last_step, stopping=True))
      if report.scalars:
        yield report
      if stopping:  # not if it came during the yield: then there is no save yet
        break
    self._stop_requested = False
    self._counters.stop.assign(False)

  def is_done(self, steps: int) -> bool:
    """Whether a run of `steps` steps has ended and all of it is reported."""
    if self._reported < self._step:
      return False
    ended_early = self._ended is not None and steps <= self._ended
    return ended_early or self._step >= self.last_step(steps)

  def _tell(
    self,
    actions: Sequence[reports.Action],
    report: reports.Report,
    steps: int,
    ended: bool,
  ) -> reports.Report:
    """Gives a Report to the Actions; ends the run where it is to end."""
    previous = self._reported
    self._reported = report.step
    if ended:
      self._ended = steps
    signals = actions_lib.dispatch(actions, report)
    if reports.Signal.STOP in signals and not report.is_last:
      self._ended = steps
      report = dataclasses.replace(report, last_step=report.step)
      if reports.Signal.INTERRUPTED not in signals:
        last = dataclasses.replace(report, scalars={}, timing={})
        signals |= actions_lib.dispatch(actions, last)
    if reports.Signal.INTERRUPTED in signals:
      self._reported = previous
    return report

  # State, for a Checkpointer.

  def read_state(self) -> dict[str, tf.Tensor]:
    with self._strategy.scope():
      state = {
        **self.task.read_state(),
        'trainer/step': self._counters.step.read_value(),
        'trainer/updates': self._counters.updates.read_value(),
        'trainer/skipped_steps': self._counters.skipped.read_value(),
        'trainer/means': self._means.read_state(),
        'trainer/last_logged': tf.constant(self._last_logged, tf.int64),
        'trainer/reported': tf.constant(self._reported, tf.int64),
        'trainer/ended': tf.constant(
          -1 if self._ended is None else self._ended, tf.int64
        ),
      }
    step, iterator = self._position or (self._step, None)
    iterator = iterator if step == self._step else None
    for name, value in self._feed.read_state(iterator).items():
      state[f'trainer/{name}'] = value
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    with self._strategy.scope():
      self.task.write_state(state)
    self._counters.step.assign(state['trainer/step'])
    self._counters.updates.assign(state['trainer/updates'])
    self._counters.skipped.assign(state['trainer/skipped_steps'])
    self._means.write_state(state['trainer/means'])
    self._feed.write_state(
      {
        name: state[f'trainer/{name}']
        for name in ('cursor', 'iterator')
        if f'trainer/{name}' in state
      }
    )
    self._last_logged = int(state['trainer/last_logged'])
    self._reported = int(state['trainer/reported'])
    ended = int(state['trainer/ended'])
    self._ended = None if ended < 0 else ended
    self._step = int(state['trainer/step'])
    self._start_step = self._step
    self._position = None

  def facts(self) -> dict[str, Any]:
    """What must not change between the lives of a run (JSON)."""
    return {
      'seed': self._seed,
      'data': dict(self._pipeline.fingerprint()),
      'optimizers': {
        name: type(optimizer).__name__
        for name, optimizer in self.task.optimizers.items()
      },
      'metrics': list(self._means.names),
      'passed_over': [],
    }

  # The engine.

  def _build(self, update: updates_lib.Update) -> tuple[str, ...]:
    batch = self._feed.first_batch()
    what = f'the model or loss cannot take a batch of {_describe(batch)}'
    with self._strategy.scope(), builds.explained(lambda: what):
      names = self.task.build(batch, update)
      replicas = self._strategy.num_replicas_in_sync
      rows = strategies.first_part(batch, replicas * update.accumulate)
      self._check_labels(rows)
    self._features = self.task.features(batch)
    return names

  def _check_labels(self, batch: Any) -> None:
    labels = self._pipeline.label_range()
    if labels is not None and isinstance(self.task, supervised.SupervisedTask):
      self.task.check_labels(*labels, batch)

  def _next_event(
    self, step: int, last_step: int, actions: Sequence[reports.Action]
  ) -> int:
    """Where the next block of steps ends."""
    due = [actions_lib.due_steps(action, step) for action in actions]
    return min(
      last_step,
      step + self._steps_per_loop,
      (step // self._log_every + 1) * self._log_every,
      *(at for at in _INSPECTED if at > step),
      *(event for event in due if event is not None),
    )

  def _is_measured(self, step: tf.Tensor) -> updates_lib.Measure:
    report = step % self._log_every == 0
    inspected = [step == at for at in _INSPECTED]
    return updates_lib.Measure(
      tf.reduce_any(tf.stack([report, *inspected])), report
    )

  def _inspect(self) -> None:
    """Names the variables whose gradient was zero in this step."""
    silent = self.task.engine.without_gradient()
    if silent:
      logging.warning(
        'Step %d: the gradient of %s is zero. Dead units, or a part of the '
        'model that the loss does not depend on?',
        self._step,
        groups.some(silent),
      )

  def _block(self, until: int) -> bool:
    """Takes steps up to `until`, fewer if it must; True if the data ended."""
    before = self.step
    self.task.check_unchanged()
    if self._position is None or self._position[0] != before:
      self._position = (before, self._feed.iterator(before))
    iterator = self._position[1]
    n = tf.constant(until - before, tf.int64)
    with (
      self._strategy.scope(),
      builds.explained(self._what_failed),
      inputs.explained(self._pipeline),
    ):
      if self.compile_seconds is None:
        begun = time.perf_counter()
        self._compile(iterator, n)
        self.compile_seconds = time.perf_counter() - begun
      begun = time.perf_counter()
      try:
        finite, loss, norm = self._loop(iterator, n)
        ended = False
      except tf.errors.OutOfRangeError:
        finite, ended = True, True
      finally:
        self._step = int(self._counters.step.numpy())
    step = self._step
    self._seconds += time.perf_counter() - begun
    self._position = (step, iterator)
    if not finite:
      raise errors.NonFiniteError(
        f'step {step}: loss {float(loss):g}, gradient norm {float(norm):g}; '
        'the update was not applied. Lower the learning rate, or look at the '
        'batch of that step (do its weights sum to zero?)',
        step=step,
      )
    if step in _INSPECTED and step > before:
      self._inspect()
    if ended and step == 0:
      raise errors.InputError('the training data yields 0 batches')
    return ended

  def _compile(self, iterator: Any, n: tf.Tensor) -> None:
    if tf.config.functions_run_eagerly():
      return
    random = self._loop.trace(iterator, n)
    if random:
      logging.warning(
        'The step draws random numbers with %s, whose state no checkpoint '
        'holds: a resumed run will differ. Use keras.random with a '
        'SeedGenerator that is an attribute of the Task.',
        ', '.join(random),
      )

  def _what_failed(self) -> str:
    step = int(self._counters.step.numpy())
    return f'step {step}: the model or loss cannot take this batch'

  def _report(self, last_step: int, stopping: bool) -> reports.Report:
    step = self.step
    at_end = step >= last_step and step > self._last_logged
    due = step // self._log_every > self._last_logged // self._log_every
    scalars: dict[str, float] = {}
    timing: dict[str, float] = {}
    seconds = self._seconds
    if not stopping and (due or at_end):
      scalars = self._read_scalars()
      timing = self._read_timing(step)
      self._last_logged = step
    return reports.Report(
      source='train',
      step=step,
      previous_step=self._reported,
      start_step=self._start_step,
      last_step=last_step,
      scalars=scalars,
      seconds=seconds,
      timing=timing,
      stopping=stopping,
    )

  def _read_scalars(self) -> dict[str, float]:
    with self._strategy.scope():
      scalars = {**self._means.read(), **self._keras_metrics.read()}
      self._means.reset()
      self._keras_metrics.reset()
      scalars.update(self.task.engine.scalars())
      if self.task.engine.may_skip:
        scalars['skipped_steps'] = float(self._counters.skipped.numpy())
      if self._pipeline.lost:
        scalars['lost_records'] = float(self._pipeline.lost)
    return scalars

  def _read_timing(self, step: int) -> dict[str, float]:
    """Rates since the last logged step of this process."""
    taken = step - max(self._last_logged, self._start_step)
    seconds = max(self._seconds, 1e-9)
    timing = {
      'seconds': self._seconds,
      'steps_per_second': taken / seconds,
      'input_wait': min(1.0, float(self._counters.waited.numpy()) / seconds),
    }
    if self._pipeline.batch_size:
      timing['examples_per_second'] = (
        taken * self._pipeline.batch_size / seconds
      )
    self._seconds = 0.0
    self._counters.waited.assign(0.0)
    return {k: v for k, v in timing.items() if math.isfinite(v)}


def _describe(batch: Any) -> str:
  return ', '.join(
    f'{leaf.dtype.name}{list(leaf.shape)}' for leaf in tf.nest.flatten(batch)
  )

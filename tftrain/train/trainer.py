"""Trainer: the host loop around one compiled inner loop."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import time
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data import dataset_pipeline
from tftrain.data import pipeline as pipeline_lib
from tftrain.distribute import coordinator
from tftrain.distribute import replica_batch
from tftrain.platform import goodput
from tftrain.report import action as action_lib
from tftrain.report import dispatch
from tftrain.report import report as report_lib
from tftrain.step import error_messages
from tftrain.step import update_options
from tftrain.task import supervised_task
from tftrain.task import task as task_lib
from tftrain.train import _skipped_steps
from tftrain.train import _stop_requests
from tftrain.train import _tpu_checks
from tftrain.train import _train_metrics
from tftrain.train import block_loop
from tftrain.train import counters as counters_lib
from tftrain.train import feed as feed_lib
from tftrain.train import inner_loop
from tftrain.train import jit as jit_lib
from tftrain.train import metrics
from tftrain.train import retracing


class Trainer:
  """Trains a Task on data, and reports metrics to Actions (callbacks).

  >>> trainer = Trainer(task, Arrays((x, y), batch_size=32))
  >>> trainer.train(1000, [log_progress])

  The constructor checks everything before the first step: it reads a batch,
  builds the model and computes the loss of that batch.

  Args:
    task: The Task to train, created inside `strategy.scope()`.
    data: A Pipeline, a `tf.data.Dataset` of global batches, a function that
      makes one, or a re-iterable of batches.
    strategy: A `tf.distribute.Strategy`; None means the current strategy, by
      default one device.
    steps_per_loop: Most steps in one call of the compiled loop. This affects
      only speed: blocks of steps also end wherever an Action or report is due.
    log_every: Steps over which train metrics are averaged and reported.
    seed: Seed of the data's order.
    update: The options of the training step; None means plain gradient descent.
    ledger: The goodput ledger that time is attributed to; None means a new one.
    max_traces: Most traces of the loop before an error; None means no limit,
      and a warning for each retrace.

  Raises:
    ConfigError: If `steps_per_loop` or `log_every` is less than 1, or `update`
      does not fit the Task.
    InputError: If `data` is empty, or the model or the replicas cannot take its
      batches.
    TaskError: If the model or loss cannot be trained.
  """

  def __init__(
    self,
    task: task_lib.Task,
    data: Any,
    *,
    strategy: tf.distribute.Strategy | None = None,
    steps_per_loop: int = 100,
    log_every: int = 100,
    seed: int = 0,
    update: update_options.Update | None = None,
    ledger: goodput.Ledger | None = None,
    max_traces: int | None = None,
  ):
    intervals = {'steps_per_loop': steps_per_loop, 'log_every': log_every}
    for name, value in intervals.items():
      if not errors.is_count(value):
        raise errors.ConfigError(f'{name} must be at least 1, got {value}')
    self.task = task
    self.ledger = ledger or goodput.Ledger()
    self.strategy = strategy or tf.distribute.get_strategy()
    self.workers = coordinator.of(self.strategy).joined(
      self, self._prepare, self._take_block, self._read_state
    )
    self.pipeline: pipeline_lib.Pipeline = dataset_pipeline.as_pipeline(
      data, training=True
    )
    self._steps_per_loop = steps_per_loop
    self._seed = seed
    _tpu_checks.check(self.strategy, self.pipeline, task, steps_per_loop)
    replica_batch.check_divides(self.pipeline.batch_size, self.strategy)
    self._feed = feed_lib.Feed(self.pipeline, seed)
    self._counters = counters_lib.Counters.make(self.workers)
    update = update or update_options.Update()
    self._max_traces = max_traces
    self._means = metrics.Means(self._build(update))
    self._readings = _train_metrics.TrainMetrics(
      task, self._means, self._counters, self.pipeline, log_every, self.ledger
    )
    self._position: tuple[int, Any] | None = None
    self._is_within = False  # within a block of steps, or after its error
    self.loop: retracing.Loop
    """The compiled training loop."""
    self.jit: jit_lib.Choice
    """What XLA compiles, and why; final after `prepare`."""
    self._asked = jit_lib.asked(update.jit)
    with self.strategy.scope():
      self._use(self._asked or jit_lib.before_tracing(task, self._feed))
    self._start_step = 0
    self._step = 0
    self._requests = _stop_requests.StopRequests(self._counters)
    self._step_complete = True  # False while a step may be incomplete
    self._ended: int | None = None  # `steps` of a call that ended early
    self.skipped_steps = _skipped_steps.SkippedSteps()
    """The steps whose batches are skipped."""
    self._reported = 0

  @property
  def step(self) -> int:
    """The number of batches consumed so far."""
    return self._step

  @property
  def tags(self) -> tuple[str, ...]:
    """The names of the means and Keras metrics that are reported."""
    return self._readings.tags

  @property
  def updates(self) -> int:
    """The number of steps so far that were finite and changed weights."""
    return int(self._counters.updates())

  @property
  def flops_per_example(self) -> float:
    """The counted FLOPs of a step per example; 0 before the loop is traced."""
    return self.loop.flops / int(replica_batch.batch_size(self.example_batch))

  @property
  def traces(self) -> int:
    """The number of traces of the loop; more than 1 means retraces."""
    return self.loop.traces

  @property
  def stop_variable(self) -> tf.Variable:
    """The stop variable, which Evaluators also watch to end early on a stop."""
    return self._counters.stop

  def example_features(self) -> Any:
    """Returns a real batch of model inputs, to try an export on."""
    return self.task.features(self.example_batch)

  def last_batch(self) -> Any:
    """Returns the last step's batch again; None if it is not reproducible."""
    return self._feed.again(self._step - 1)

  def next_batch(self) -> Any:
    """Reads the next batch; None at the end of the data.

    The next step cannot use this batch: do not train afterwards.
    """
    try:
      return self._feed.take(self._iterator(), self._counters.step.read_value())
    except tf.errors.OutOfRangeError:
      return None

  def request_stop(self) -> None:
    """Ends the run after the step in progress; thread-safe."""
    self._requests.stop()

  def request_save(self) -> None:
    """Saves after the step in progress and goes on; thread-safe."""
    self._requests.save()

  def last_step(self, steps: int) -> int:
    """Returns `steps`, or the step at which the data ends if that is less."""
    if not errors.is_count(steps, least=0):
      raise errors.ConfigError(
        f'steps must be a whole number of at least 0, got {steps!r}'
      )
    if self._ended is not None and steps <= self._ended:
      return self._step
    ends = self.pipeline.num_steps
    return steps if ends is None else min(steps, ends)

  def train(
    self, steps: int, actions: Sequence[action_lib.ActionLike] = ()
  ) -> report_lib.Report | None:
    """Trains until step `steps`, counted from the beginning of the run.

    Args:
      steps: Total number of steps; a resumed run takes the remaining ones.
      actions: The Actions (callbacks) that receive each Report.

    Returns:
      The last Report with scalars; None if there was nothing left to do.

    Raises:
      NonFiniteError: If the loss or a gradient is NaN or infinite.
    """
    last = None
    for last in self.steps(steps, actions):
      pass
    return last

  def steps(
    self, steps: int, actions: Sequence[action_lib.ActionLike] = ()
  ) -> Iterator[report_lib.Report]:
    """Trains as `train` does and yields a Report every `log_every` steps.

    >>> for report in trainer.steps(1000, [Every(100, checkpointer)]):
    ...   print(report.step, report.scalars['loss'])

    Args:
      steps: Total number of steps; a resumed run takes the remaining ones.
      actions: The Actions (callbacks) that receive each Report.

    Raises:
      NonFiniteError: If the loss or a gradient is NaN or infinite.
    """
    called = action_lib.as_actions(actions)
    with (
      self.ledger.part('step'),
      self.workers.leading(last=False),
      self._saved_after_errors(called),
    ):
      last_step = self.last_step(steps)
      if self.workers.leads and not self.is_done(steps):
        with self.workers.calling(self._prepare):
          self._prepare()
      while self.workers.leads and not self.is_done(steps):
        ended = False
        if self._reported == self._step:  # else repeats the interrupted report
          until = self._next_event(self._step, last_step, called)
          with self.workers.calling(self._take_block, until):
            ended = self._take_block(until)
          ended = ended and not self._requests.stopping
          last_step = self._step if ended else last_step
        saving = self._requests.take_save()
        report = self._report(last_step, self._requests.stopping, saving)
        if not report.stopping:
          report = self._report_to_actions(called, report, steps, ended)
        stopping = self._requests.stopping
        if stopping:
          # The stop may have interrupted the Actions of this step. The
          # checkpoint then records the step as not reported; the resumed run
          # reports it.
          self._dispatch(called, self._report(last_step, stopping=True))
        if report.scalars:
          yield report
        if stopping:  # a stop during the yield saves first, in the next turn
          break
      self._requests.clear()

  @contextlib.contextmanager
  def _saved_after_errors(
    self, actions: Sequence[action_lib.Action]
  ) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      self._save_after(error, actions)
      raise

  def _save_after(
    self, error: Exception, actions: Sequence[action_lib.Action]
  ) -> None:
    """Saves before an error ends the run, if the last step is complete.

    State that is not finite and incomplete steps are not saved, and a failed
    save is not retried. A failure here is logged; the first error propagates.
    """
    whole = self._step_complete or isinstance(error, errors.InputError)
    needless = errors.NonFiniteError, errors.CheckpointError
    if not whole or isinstance(error, needless):
      return
    try:
      self._dispatch(actions, self._report(self._step + 1, stopping=True))
    except Exception as another:
      logging.error('After that error nothing was saved: %s', another)

  def is_done(self, steps: int) -> bool:
    """Returns whether a run of `steps` steps has ended and is reported."""
    if self._reported < self._step:
      return False
    ended_early = self._ended is not None and steps <= self._ended
    return ended_early or self._step >= self.last_step(steps)

  def _dispatch(
    self, actions: Sequence[action_lib.Action], report: report_lib.Report
  ) -> set[report_lib.Signal | None]:
    return dispatch.dispatch(actions, report, self.ledger)

  def _report_to_actions(
    self,
    actions: Sequence[action_lib.Action],
    report: report_lib.Report,
    steps: int,
    ended: bool,
  ) -> report_lib.Report:
    """Dispatches a Report to the Actions and handles their Signals.

    Returns:
      The Report, with an earlier `last_step` if an Action stops the run.
    """
    previous = self._reported
    self._reported = report.step
    if ended:
      self._ended = steps
    try:
      signals = self._dispatch(actions, report)
    except Exception:
      self._reported = previous  # a resumed run calls all Actions again
      raise
    if report_lib.Signal.STOP in signals and not report.is_last:
      self._ended = steps
      report = dataclasses.replace(report, last_step=report.step)
      if report_lib.Signal.INTERRUPTED not in signals:
        last = dataclasses.replace(report, scalars={}, timing={})
        signals |= self._dispatch(actions, last)
    if report_lib.Signal.INTERRUPTED in signals:
      self._reported = previous
    return report

  # State, for a Checkpointer.

  def read_state(self) -> dict[str, tf.Tensor]:
    with self.workers.calling(self._read_state):
      return self._read_state()

  def _read_state(self) -> dict[str, tf.Tensor]:
    with self.strategy.scope():
      state = {
        **self.task.read_state(),
        'trainer/reported': tf.constant(self._reported, tf.int64),
        'trainer/ended': tf.constant(
          -1 if self._ended is None else self._ended, tf.int64
        ),
      }
    if self._is_within and self.pipeline.keeps_iterator:
      raise errors.CheckpointError(
        f'the state of the data at step {self._step} is not known, as an error '
        'ended a block of steps'
      )
    step, iterator = self._position or (self._step, None)
    iterator = iterator if step == self._step else None
    parts = [self._counters.read_state(), self._feed.read_state(iterator)]
    for part in (*parts, self._readings.read_state()):
      state.update({f'trainer/{name}': value for name, value in part.items()})
    return state

  def write_state(self, state: Mapping[str, Any]) -> None:
    with self.strategy.scope():
      self.task.write_state(state)
    own = {
      name.removeprefix('trainer/'): value
      for name, value in state.items()
      if name.startswith('trainer/')
    }
    self._counters.write_state(own)
    self._feed.write_state(own)
    self._readings.write_state(own)
    self._reported = int(own['reported'])
    ended = int(own['ended'])
    self._ended = None if ended < 0 else ended
    self._step = int(own['step'])
    self._start_step = self._step
    self._position = None
    self._is_within = False
    self._step_complete = True

  def facts(self) -> dict[str, Any]:
    """Returns the JSON facts that must be equal in all attempts of a run."""
    return {
      'seed': self._seed,
      'jit': self.jit.jit,
      'data': dict(self.pipeline.fingerprint()),
      'optimizers': {
        name: type(optimizer).__name__
        for name, optimizer in self.task.optimizers.items()
      },
      'metrics': list(self.tags),
      'passed_over': self.skipped_steps.facts(),
    }

  def write_facts(self, facts: Mapping[str, Any]) -> None:
    self.skipped_steps.write_facts(facts)

    if self._asked is None and self.loop.compile_seconds is None:
      self._asked = jit_lib.as_before(facts.get('jit'), self.jit)
      if self._asked is not None:
        self._use(self._asked)

  # Steps and reports.

  def _use(self, choice: jit_lib.Choice) -> None:
    """Makes the loop, which is compiled later."""
    kind = block_loop if choice.jit == 'block' else inner_loop
    self._feed.stack(stacked=choice.jit == 'block')
    with self.strategy.scope():
      loop = kind.train_loop(
        self.task,
        self._feed,
        self._counters,
        self._means,
        self._readings.is_measured,
        self._max_traces,
      )
    if hasattr(self, 'loop'):
      loop.record_to(self.loop.context)
    self.jit, self.loop = choice, loop
    most = None if choice.jit == 'block' else self._feed.most_steps
    self._most_steps = self._steps_per_loop if most is None else most
    self._position = None

  def prepare(self) -> None:
    """Compiles the loop, without a step, and settles `jit`."""
    with self.workers.calling(self._prepare):
      self._prepare()

  def _prepare(self) -> None:
    if self.loop.compile_seconds is not None:
      return
    self.task.check_unchanged()
    iterator = self._iterator()
    with self._explained(), self.ledger.part('compile'):
      if self._asked is None and isinstance(self.loop, block_loop.BlockLoop):
        choice = self.loop.choose(iterator)
        if choice.jit == 'off':
          self._use(choice)
        self.jit = choice
      self.loop.prepare(self._iterator(), tf.constant(1, tf.int64))

  def _build(self, update: update_options.Update) -> tuple[str, ...]:
    batch = self._feed.first_batch()
    spec = pipeline_lib.described(batch)
    what = f'the model or loss cannot take a batch of {spec}'
    with self.strategy.scope(), error_messages.explained(lambda: what):
      names = self.task.build(batch, update)
      replicas = self.strategy.num_replicas_in_sync
      rows = replica_batch.first_part(batch, replicas * update.accumulate)
      labels = self.pipeline.label_range()
      if labels and isinstance(self.task, supervised_task.SupervisedTask):
        with self.task.variables_restored():
          self.task.check_labels(*labels, rows)
    self.example_batch = batch
    return names

  def _next_event(
    self, step: int, last_step: int, actions: Sequence[action_lib.Action]
  ) -> int:
    """Returns the step at which the next block ends."""
    due = [action.next_due(step) for action in actions]
    return min(
      last_step,
      step + min(self._steps_per_loop, self._most_steps),
      *self._readings.due(step),
      *self.skipped_steps.edges(step),
      *(event for event in due if event is not None),
    )

  def _iterator(self) -> Any:
    if self._position is None or self._position[0] != self._step:
      self._position = (self._step, self._feed.iterator(self._step))
    return self._position[1]

  def _take_block(self, until: int) -> bool:
    """Trains up to step `until`, or to a stop; True if the data ended."""
    before = self.step
    self.task.check_unchanged()
    iterator = self._iterator()
    self._feed.mark(before)
    with self._requests.settled(), self._at_step(iterator):
      if self.skipped_steps.holds(before + 1):
        return _skipped_steps.skip(self._feed, iterator, self._counters, until)
      n = tf.constant(until - before, tf.int64)
      begun = time.perf_counter()
      self._step_complete = False
      try:
        finite, loss, norm = self.loop(iterator, n)
        ended = False
      except tf.errors.OutOfRangeError as error:
        # TensorFlow also calls a file that is too large, say, out of range.
        if self.pipeline.repeats:
          raise errors.InputError(
            'the data ended, though it repeats without end: '
            f'{errors.one_line(error)}'
          ) from error
        finite, ended = True, True
      self._step_complete = True
      self._readings.seconds += time.perf_counter() - begun
    if not finite:
      if not self.task.step_runner.may_skip:  # else the loop counts it
        self._counters.without_update.assign_add(1)
      raise errors.NonFiniteError(
        f'step {self._step}: loss {float(loss):g}, gradient norm '
        f'{float(norm):g}; the update was not applied. {self._remedy()}',
        step=self._step,
      )
    self._readings.inspect(before, self._step)
    if ended and self._step == 0:
      raise errors.InputError('the training data yields 0 batches')
    return ended

  @contextlib.contextmanager
  def _at_step(self, iterator: Any) -> Iterator[None]:
    """Reads the step that the loop came to, at the end of this context."""
    self._position = None
    self._is_within = True
    try:
      with self._explained():
        yield
    finally:
      self._step = int(self._counters.step.numpy())
    self._position = (self._step, iterator)
    self._is_within = False

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    with (
      self.strategy.scope(),
      error_messages.explained(self._what_failed),
      pipeline_lib.explained(self.pipeline),
    ):
      yield

  def _remedy(self) -> str:
    """Returns what to do about a step whose loss or gradient is not finite."""
    batch = self.last_batch()
    entry = None if batch is None else pipeline_lib.non_finite_entry(batch)
    if entry is None:
      return 'Lower the learning rate, or look at the batch of that step'
    return (
      f'{entry}: clean or replace that row (a weight of 0 leaves the gradient '
      'NaN)'
    )

  def _what_failed(self) -> str:
    step = int(self._counters.step.numpy())
    return f'step {step}: the model or loss cannot take this batch'

  def _report(
    self, last_step: int, stopping: bool, saving: bool = False
  ) -> report_lib.Report:
    step, seconds = self.step, self._readings.seconds
    scalars: dict[str, float] = {}
    timing: dict[str, float] = {}
    if not stopping and self._readings.are_due(step, last_step):
      with self.strategy.scope():
        scalars, timing = self._readings.take(step, self._start_step, self.loop)
    return report_lib.Report(
      source='train',
      step=step,
      previous_step=self._reported,
      start_step=self._start_step,
      last_step=last_step,
      scalars=scalars,
      seconds=seconds,
      timing=timing,
      stopping=stopping,
      saving=saving,
    )

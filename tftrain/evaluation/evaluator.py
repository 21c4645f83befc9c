"""Evaluator: an Action that computes the metrics of a Task on a dataset."""

from collections.abc import Mapping
from collections.abc import Sequence
import time
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.data import dataset_pipeline
from tftrain.data import pipeline as pipeline_lib
from tftrain.distribute import coordinator
from tftrain.evaluation import _host_metrics
from tftrain.platform import goodput
from tftrain.report import action as action_lib
from tftrain.report import dispatch
from tftrain.report import report as report_lib
from tftrain.step import error_messages
from tftrain.summary import artifacts as artifacts_lib
from tftrain.task import task as task_lib
from tftrain.train import counters as counters_lib
from tftrain.train import feed as feed_lib
from tftrain.train import inner_loop
from tftrain.train import metrics

_ALL = tf.int64.max


class Evaluator(action_lib.Action):
  """Computes exact means over all of `data`, a partial last batch included.

  As an Action, an Evaluator evaluates at each Report it receives, and passes a
  Report with the source `eval/<name>` to its own `actions`. The metrics of
  training stay untouched.

  Args:
    task: The Task, shared with a Trainer.
    data: Finite data, in any form that a Trainer takes; read once per
      evaluation, in order.
    strategy: The Trainer's strategy; None means the current one, by default
      one device.
    name: Name of the data.
    actions: Actions that receive the Reports.
    stop: The variable `trainer.stop_variable`: a stop then ends an evaluation
      early, without a Report.
    ledger: Goodput ledger to which time is attributed; None discards
      the times.

  Raises:
    InputError: If `data` repeats without end, or the model or the loss rejects
      its first batch.
  """

  part = 'evaluation'

  def __init__(
    self,
    task: task_lib.Task,
    data: Any,
    *,
    strategy: tf.distribute.Strategy | None = None,
    name: str = 'test',
    actions: Sequence[action_lib.ActionLike] = (),
    stop: tf.Variable | None = None,
    ledger: goodput.Ledger | None = None,
  ):
    self.name = name
    self._ledger = ledger or goodput.Ledger()
    self._task = task
    self._strategy = strategy or tf.distribute.get_strategy()
    self.workers = coordinator.of(self._strategy).joined(
      self, self._evaluate, self._make_artifacts
    )
    self._pipeline = dataset_pipeline.as_pipeline(data, training=False)
    self._actions = action_lib.as_actions(actions)
    if self._pipeline.repeats:
      raise errors.InputError(
        f'evaluation {name!r}: the data never ends; make it Arrays(..., '
        'training=False), or leave out .repeat()'
      )
    self._feed = feed_lib.Feed(self._pipeline, seed=0)
    counters = counters_lib.Counters.make(self.workers)
    self._counters = counters if stop is None else counters.with_stop(stop)
    self._means = metrics.Means(self._build())
    self._keras_metrics = metrics.KerasMetrics(task.metrics)
    self._host_metrics = _host_metrics.HostMetrics(task, self._pipeline)
    metrics.check_names(
      self._means.names,
      [*self._keras_metrics.names, *self._host_metrics.names],
    )
    with self._strategy.scope():
      self._loop = inner_loop.eval_loop(
        task, self._feed, self._counters, self._means
      )
    self._previous_step = 0

  @property
  def tags(self) -> tuple[str, ...]:
    """The names of the reported metrics."""
    return (
      *self._means.names,
      *self._keras_metrics.names,
      *self._host_metrics.names,
    )

  def example_features(self) -> Any:
    """Returns the model's inputs of a real batch."""
    return self._task.features(self.example_batch)

  @property
  def pipeline(self) -> pipeline_lib.Pipeline:
    """The Pipeline of the data."""
    return self._pipeline

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    """Evaluates at a Trainer's Report.

    Returns:
      STOP if an Action asks for it; INTERRUPTED if a stop ended the evaluation
      early; else None.
    """
    begun = time.perf_counter()
    scalars = self.evaluate()
    if scalars is None:
      return report_lib.Signal.INTERRUPTED
    own = report_lib.Report(
      source=f'eval/{self.name}',
      step=report.step,
      previous_step=self._previous(report),
      start_step=report.start_step,
      last_step=report.last_step,
      scalars=scalars,
      seconds=time.perf_counter() - begun,
      timing={'seconds': time.perf_counter() - begun},
      artifacts=self._artifacts(),
    )
    self._previous_step = report.step
    signals = dispatch.dispatch(self._actions, own, self._ledger)
    return report_lib.Signal.STOP if report_lib.Signal.STOP in signals else None

  def _previous(self, report: report_lib.Report) -> int:
    known = self._previous_step
    if known > report.step:  # after a rewind
      known = 0
    return max(known, report.start_step)

  def evaluate(self) -> dict[str, float] | None:
    """Returns metric name -> exact mean; None if a stop came first."""
    with self.workers.calling(self._evaluate):
      return self._evaluate()

  def _evaluate(self) -> dict[str, float] | None:
    self._means.reset()
    self._counters.step.assign(0)
    batches = self._pipeline.num_steps
    n = tf.constant(_ALL if batches is None else batches, tf.int64)
    with (
      self._strategy.scope(),
      self._task.averaged(),
      self._task.seeds_restored(),
    ):
      training = self._keras_metrics.values()
      self._keras_metrics.reset()
      try:
        self._run(n)
        scalars = {**self._means.read(), **self._keras_metrics.read()}
        scalars.update(self._measure_on_host())
      finally:
        self._keras_metrics.set_values(training)
    return None if self._counters.stop.numpy() == counters_lib.STOP else scalars

  def _measure_on_host(self) -> dict[str, float]:
    with (
      error_messages.explained(
        lambda: f'evaluation {self.name!r}: collect() failed'
      ),
      pipeline_lib.explained(self._pipeline),
    ):
      return self._host_metrics.read(self._counters.stop)

  def _artifacts(self) -> Mapping[str, Any]:
    with self.workers.calling(self._make_artifacts):
      return self._make_artifacts()

  def _make_artifacts(self) -> Mapping[str, Any]:
    what = f'artifacts() of {type(self._task).__name__} failed'
    with (
      self._strategy.scope(),
      self._task.averaged(),
      self._task.variables_restored(),
    ):
      with error_messages.explained(lambda: what):
        shown = self._task.artifacts(self.example_batch)
    return artifacts_lib.prepared(type(self._task).__name__, shown)

  def _run(self, n: tf.Tensor) -> None:
    with (
      error_messages.explained(self._what_failed),
      pipeline_lib.explained(self._pipeline),
    ):
      try:
        iterator = self._feed.iterator(0)
        with self._ledger.part('compile'):
          self._loop.prepare(iterator, n)
        self._loop(iterator, n)
      except tf.errors.OutOfRangeError:
        pass  # the end of data of unknown length

  def _what_failed(self) -> str:
    batch = int(self._counters.step.numpy())
    return (
      f'evaluation {self.name!r}, batch {batch}: the model or loss cannot take '
      'it'
    )

  def _build(self) -> tuple[str, ...]:
    """Runs one batch without effect, to find wrong data before step 1.

    Returns:
      The names of the means.
    """
    self.example_batch = batch = self._feed.first_batch()
    what = f'evaluation {self.name!r}: the model or loss cannot take its data'
    with self._strategy.scope(), error_messages.explained(lambda: what):
      if not self._task.is_built:
        self._task.build(batch)
      with self._task.variables_restored():
        names = tuple(self._task.eval_step(batch))
    self._artifacts()  # fails now, not at the first evaluation
    return names

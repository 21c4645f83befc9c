"""Train metrics and timing, over the steps since the last report."""

from collections.abc import Mapping
import math
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data import pipeline as pipeline_lib
from tftrain.interop import tracking
from tftrain.platform import goodput
from tftrain.platform import process_memory
from tftrain.step import update_options
from tftrain.task import task as task_lib
from tftrain.train import counters as counters_lib
from tftrain.train import flops
from tftrain.train import metrics
from tftrain.train import retracing

# The steps whose gradients are checked for zeros, variable by variable.
_INSPECTED = (1, 100)


class TrainMetrics:
  """Metrics and timing of a Trainer, read and reset at each report.

  Args:
    task: The Task; built already.
    means: The running means of the Task's metrics.
    counters: The Counters of the training loop.
    pipeline: The training data.
    log_every: Steps between reports.
    ledger: The goodput ledger, to which data stalls are attributed.
  """

  def __init__(
    self,
    task: task_lib.Task,
    means: metrics.Means,
    counters: counters_lib.Counters,
    pipeline: pipeline_lib.Pipeline,
    log_every: int,
    ledger: goodput.Ledger,
  ):
    self._task = task
    self._means = means
    self._keras_metrics = metrics.KerasMetrics(task.metrics)
    metrics.check_names(means.names, self._keras_metrics.names)
    self._counters = counters
    self.workers = counters.workers.joined(self, self._scalars)
    self._pipeline = pipeline
    self._log_every = log_every
    self._ledger = ledger
    self.seconds = 0.0
    """Time of the steps since the last report."""
    self._waited = 0.0  # `Counters.waited` at the last report
    self._last_logged = 0
    self._growth = process_memory.Growth()
    layers = tracking.owned_by(task).sublayers.values()
    self._half = any(layer.compute_dtype != 'float32' for layer in layers)

  @property
  def tags(self) -> tuple[str, ...]:
    return (*self._means.names, *self._keras_metrics.names)

  def are_due(self, step: int, last_step: int) -> bool:
    at_end = step >= last_step and step > self._last_logged
    before = self._last_logged // self._log_every
    return at_end or step // self._log_every > before

  def due(self, step: int) -> list[int]:
    """Returns steps after `step` at which a block must end."""
    report = (step // self._log_every + 1) * self._log_every
    return [report, *(at for at in _INSPECTED if at > step)]

  def is_measured(self, step: tf.Tensor) -> update_options.Measure:
    """Returns the measurements to take in a step; traceable."""
    report = step % self._log_every == 0
    inspected = [step == at for at in _INSPECTED]
    return update_options.Measure(
      tf.reduce_any(tf.stack([report, *inspected])), report
    )

  def take(
    self, step: int, start_step: int, loop: retracing.Loop
  ) -> tuple[dict[str, float], dict[str, float]]:
    """Returns (metrics, timing) since the last report, and resets both."""
    with self.workers.calling(self._scalars):
      scalars = self._scalars()
    timing = self._timing(step, start_step)
    timing.update(self._use(timing, loop))
    self._growth.look(step, timing['memory/process_mb'], loop.traces)
    self._last_logged = step
    return scalars, timing

  def _scalars(self) -> dict[str, float]:
    scalars = {**self._means.read(), **self._keras_metrics.read()}
    self._means.reset()
    self._keras_metrics.reset()
    scalars.update(self._task.step_runner.scalars())
    if self._task.step_runner.may_skip:
      scalars['skipped_steps'] = float(self._counters.skipped.numpy())
    if self._pipeline.lost:
      scalars['lost_records'] = float(self._pipeline.lost)
    return scalars

  def inspect(self, before: int, step: int) -> None:
    """Warns of variables with a zero gradient, at the inspected steps.

    Args:
      before: The first step of the block, exclusive.
      step: The last step of the block.
    """
    if step not in _INSPECTED or step == before:
      return
    silent = self._task.step_runner.without_gradient()
    if silent:
      logging.warning(
        'Step %d: the gradient of %s is zero. Dead units, or a part of the '
        'model that the loss does not depend on?',
        step,
        errors.listing(silent),
      )

  def _timing(self, step: int, start_step: int) -> dict[str, float]:
    """Returns rates since the last report, or since this process started."""
    taken = step - max(self._last_logged, start_step)
    seconds = max(self.seconds, 1e-9)
    waited = float(self._counters.waited.numpy())
    waited, self._waited = waited - self._waited, waited
    self._ledger.move(waited, 'step', 'input_wait')
    timing = {
      'seconds': self.seconds,
      'steps_per_second': taken / seconds,
      'input_wait': min(1.0, waited / seconds),
    }
    if self._pipeline.batch_size:
      timing['examples_per_second'] = (
        taken * self._pipeline.batch_size / seconds
      )
    self.seconds = 0.0
    for part, spent in self._ledger.read().items():
      timing[f'goodput/{part}'] = spent
    return {k: v for k, v in timing.items() if math.isfinite(v)}

  def _use(
    self, timing: Mapping[str, float], loop: retracing.Loop
  ) -> dict[str, float]:
    """Returns memory, throughput per replica, FLOPs and utilization."""
    use = process_memory.readings()
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    examples = timing.get('examples_per_second')
    if examples and replicas > 1:
      use['examples_per_second_per_replica'] = examples / replicas
    if loop.flops:
      per_second = loop.flops * timing['steps_per_second']
      use['teraflops_per_second'] = per_second / 1e12
      if peak := flops.peak(half=self._half):
        use['utilization'] = per_second / (replicas * peak)
    return use

  # State, for a Checkpointer.

  def read_state(self) -> dict[str, tf.Tensor]:
    return {
      'means': self._means.read_state(),
      'last_logged': tf.constant(self._last_logged, tf.int64),
    }

  def write_state(self, state: Mapping[str, Any]) -> None:
    self._means.write_state(state['means'])
    self._last_logged = int(state['last_logged'])
    self.seconds = 0.0

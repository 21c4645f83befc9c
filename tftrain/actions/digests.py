"""Digests: an Action that records SHA-256 digests of batches and weights."""

from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.platform import hashing
from tftrain.platform import jsonl
from tftrain.report import action as action_lib
from tftrain.report import report as report_lib

_FILE = 'digests.jsonl'


class Digests(action_lib.Action):
  """Appends {"step", "batch", "weights"} to `model_dir/digests.jsonl`.

  `batch` is the digest of the step's batch, `weights` that of the Task's
  variables after the step. `python -m tftrain.debug.compare_runs` uses them to
  find the step at which two runs diverge. The file of a run that was killed and
  resumed equals that of an uninterrupted run.

  The batch is read a second time for its digest. `batch` is null for data that
  cannot be read again, because it keeps its iterator or restarts on resume.

  >>> Experiment(make_task, train_data, steps=1000, actions=[Digests(every=10)])

  Args:
    every: Steps between lines; the last step always has a line.

  Raises:
    ConfigError: If `every` is not a whole number of at least 1.
  """

  part = 'summaries'
  needs_scalars = False
  place = 1

  def __init__(self, every: int = 100):
    errors.check_count('Digests.every', every)
    self._every = every
    self._run: report_lib.BoundRun | None = None
    self._log: jsonl.ResumableLog | None = None
    self._attempt: Any = None
    self._last_step = -1

  def bind(self, run: report_lib.BoundRun) -> None:
    """Sets the run whose steps are recorded."""
    self._run = run
    self._log = jsonl.ResumableLog(run.model_dir / _FILE)

  def next_due(self, step: int) -> int:
    return (step // self._every + 1) * self._every

  def __call__(self, report: report_lib.Report) -> None:
    if self._run is None or self._log is None:
      raise errors.ConfigError(
        'Digests does not know its run; give it to Experiment.actions'
      )
    step, trainer = report.step, self._run.trainer
    # A rewind truncates the log like a restart, perhaps at the same step.
    attempt = report.start_step, trainer.skipped_steps.parts
    if attempt != self._attempt or step < self._last_step:
      self._log.resume(report.start_step)
      self._attempt = attempt
    self._last_step = step
    due = step // self._every > report.previous_step // self._every
    if not (due or report.is_last) or self._log.holds(step):
      return
    with trainer.strategy.scope():
      weights = weights_digest(trainer.task)
    batch = batch_digest(trainer.last_batch())
    self._log.append({'step': step, 'batch': batch, 'weights': weights})


def batch_digest(batch: Any) -> str | None:
  """Returns the SHA-256 of a batch; None if `batch` is None."""
  if batch is None:
    return None
  leaves = tf.nest.flatten(batch, expand_composites=True)
  return hashing.arrays_digest(
    (str(i), np.asarray(leaf)) for i, leaf in enumerate(leaves)
  )


def check_same_data(team: Any, what: str, reader: Any) -> None:
  """Raises StrategyError if the workers read different data.

  Args:
    team: The workers.
    what: Name of the data, for messages.
    reader: Trainer or Evaluator of the data.
  """
  if team.count == 1:
    return
  pipeline, first = reader.pipeline, batch_digest(reader.example_batch)
  facts = [pipeline.fingerprint(), pipeline.num_steps]
  team.check_same({what: facts, f'the first batch of {what}': first})


def weights_digest(task: Any) -> str:
  """Returns the SHA-256 of all variables of a Task, trainable or not."""
  owned = tracking.owned_by(task).variables
  return hashing.arrays_digest(
    (name, variables_lib.raw(owned[name]).read_value().numpy())
    for name in sorted(owned)
  )

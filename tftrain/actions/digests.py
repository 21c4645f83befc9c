"""Digests: what a run saw and what it had become, step by step, as SHA-256."""

from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.platform import hashing
from tftrain.platform import jsonl
from tftrain.report import report as report_lib

_FILE = 'digests.jsonl'


class Digests:
  """Appends {"step", "batch", "weights"} to `model_dir/digests.jsonl`.

  `batch` is a digest of the step's batch, `weights` one of the Task's variables
  after it. `python -m tftrain.debug.compare_runs` finds with them where two runs part. The
  file of a run that was killed and resumed equals that of one that was not.

  A batch is made once more for its digest. Where that cannot be done (an
  iterator that is kept, or begins anew), `batch` is null.

  >>> Experiment(make_task, train_data, steps=1000, actions=[Digests(every=10)])

  Args:
    every: Steps between lines; the last step has one in any case.

  Raises:
    ConfigError: It is no number of steps.
  """

  part = 'summaries'

  def __init__(self, every: int = 100):
    errors.check_count('Digests.every', every)
    self._every = every
    self._run: report_lib.BoundRun | None = None
    self._log: jsonl.ResumableLog | None = None
    self._attempt: Any = None
    self._last_step = -1

  def bind(self, run: report_lib.BoundRun) -> None:
    """Says whose steps these are."""
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
    # A rewind takes lines back like a restart, perhaps from the same step.
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
  """SHA-256 of what a step took; None if nobody knows what that was."""
  if batch is None:
    return None
  leaves = tf.nest.flatten(batch, expand_composites=True)
  return hashing.arrays_digest(
    (str(i), np.asarray(leaf)) for i, leaf in enumerate(leaves)
  )


def check_same_data(team: Any, what: str, reader: Any) -> None:
  """Raises StrategyError if several workers are given different data.

  Args:
    team: The workers.
    what: The data, in messages.
    reader: A Trainer or an Evaluator of them.
  """
  if team.count == 1:
    return
  pipeline, first = reader.pipeline, batch_digest(reader.example_batch)
  facts = [pipeline.fingerprint(), pipeline.num_steps]
  team.check_same({what: facts, f'the first batch of {what}': first})


def weights_digest(task: Any) -> str:
  """SHA-256 of all variables of a Task: what is trained, and what is not."""
  owned = tracking.owned_by(task).variables
  return hashing.arrays_digest(
    (name, variables_lib.raw(owned[name]).read_value().numpy())
    for name in sorted(owned)
  )

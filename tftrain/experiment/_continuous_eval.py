"""Continuous evaluation: evaluates the checkpoints of a run in progress."""

from collections.abc import Sequence
import pathlib
import threading
import time

from absl import logging

from tftrain import errors
from tftrain.checkpoint import checkpointer as checkpointer_lib
from tftrain.checkpoint import format
from tftrain.evaluation import evaluator as evaluator_lib
from tftrain.experiment import run_record
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.platform import lock
from tftrain.platform import signals as signals_lib
from tftrain.report import report as report_lib
from tftrain.summary import metrics_file as metrics_file_lib
from tftrain.summary import summary_writer as summary_writer_lib
from tftrain.train import trainer as trainer_lib

METRICS = 'eval_metrics.jsonl'
"""File of the metrics; `metrics.jsonl` belongs to the training process."""


class ContinuousEvaluator:
  """Evaluates every checkpoint of a run, beginning with those it missed.

  It ends after it has evaluated the last checkpoint of a finished run, or if no
  process has trained for `timeout` seconds. A checkpoint that the training
  process removes during its restore is skipped.

  Args:
    model_dir: Directory of the run.
    trainer: Trainer built like that of the run; checkpoints are restored into
      it.
    checkpointer: Checkpointer that restores `trainer`.
    evaluators: Evaluators to run at each checkpoint.
    summary_writer: Writer of TensorBoard summaries.
    metrics_file: File of the metrics.
    timeout: Seconds without a training process after which to fail.
    stop_signals: Names of the signals that stop the evaluation.
    poll: Seconds between checks for new checkpoints.
  """

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    *,
    trainer: trainer_lib.Trainer,
    checkpointer: checkpointer_lib.Checkpointer,
    evaluators: Sequence[evaluator_lib.Evaluator],
    summary_writer: summary_writer_lib.SummaryWriter,
    metrics_file: metrics_file_lib.MetricsFile,
    timeout: float = 600.0,
    stop_signals: Sequence[str] = signals_lib.STOP_SIGNALS,
    poll: float = 1.0,
  ):
    self.model_dir = files.run_directory(model_dir)
    self._trainer = trainer
    self._checkpointer = checkpointer
    self._evaluators = tuple(evaluators)
    self._summary_writer = summary_writer
    self._metrics_file = metrics_file
    self._timeout = timeout
    self._stop_signals = stop_signals
    self._poll = poll
    self._stop = threading.Event()
    self._passed_over: set[int] = set()

  def follow(self) -> tuple[list[int], int]:
    """Evaluates until the run has finished, or a signal arrives.

    Returns:
      The evaluated steps, and the exit code: 0, or that of the signal.

    Raises:
      ConfigError: If there are no evaluators.
      RunDirectoryError: If another process follows the run, or no process has
        trained for `timeout` seconds and the run is not finished.
    """
    if not self._evaluators:
      raise errors.ConfigError(
        'there is nothing to evaluate; give Experiment.eval_data'
      )
    directory = self.model_dir / 'eval'
    files.make_directory(directory)
    with (
      lock.lock(directory),
      signals_lib.stop_on_signal(
        self._request_stop, stop=self._stop_signals
      ) as stopper,
    ):
      done = self._begin()
      try:
        evaluated = self._follow(done)
      finally:
        self._summary_writer.close()
    return evaluated, stopper.exit_code

  def _request_stop(self) -> None:
    self._stop.set()
    self._trainer.request_stop()

  def _begin(self) -> set[int]:
    """Opens the metric writers; returns the steps evaluated before."""
    names = {f'eval/{evaluator.name}' for evaluator in self._evaluators}
    lines = jsonl.read(self.model_dir / METRICS)
    sources: dict[int, set[str]] = {}
    for line in lines:
      sources.setdefault(line['step'], set()).add(line['source'])
    done = {step for step, found in sources.items() if found >= names}
    last = max(sources, default=None)
    published = self._metrics_file.begin(0 if last is None else last)
    self._summary_writer.begin(last, published)
    return done

  def _follow(self, done: set[int]) -> list[int]:
    evaluated: list[int] = []
    alive = time.monotonic()
    while not self._stop.is_set():
      # Read before the listing, which then holds the last checkpoint.
      finished = run_record.read_record(self.model_dir).get('finished')
      todo = self._todo(done)
      for step in todo:
        if self._evaluate(step):
          done.add(step)
          evaluated.append(step)
        if self._stop.is_set():
          break
      if todo:
        alive = time.monotonic()
        continue
      if finished:
        break
      if lock.holder(self.model_dir):
        alive = time.monotonic()
      elif time.monotonic() - alive > self._timeout:
        raise errors.RunDirectoryError(
          f'{self.model_dir} is not finished and nobody has trained there for '
          f'{self._timeout:g} s; start the training again, then this'
        )
      self._stop.wait(self._poll)
    return evaluated

  def _todo(self, done: set[int]) -> list[int]:
    steps = format.committed_steps(self._checkpointer.directory)
    return [s for s in steps if s not in done and s not in self._passed_over]

  def _evaluate(self, step: int) -> bool:
    """Returns False if the restore fails, or a stop comes before the end."""
    try:
      if not self._checkpointer.restore_step(step):
        logging.warning(
          'Checkpoint %d was removed before it was evaluated; let the trainer '
          'keep more (Experiment.keep)',
          step,
        )
        return False
    except errors.DamagedError as error:
      logging.error('Not evaluated: %s', error)
      self._passed_over.add(step)
      return False
    report = report_lib.Report(
      source='train',
      step=step,
      previous_step=0,
      start_step=0,
      last_step=self._trainer.step,
    )
    signals = [evaluator(report) for evaluator in self._evaluators]
    self._summary_writer.flush()
    return report_lib.Signal.INTERRUPTED not in signals

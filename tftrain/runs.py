"""A run: the parts of an Experiment put together on one model_dir."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import platform
import socket
import sys
import time
from typing import Any

import keras
import tensorflow as tf

from tftrain import checkpoints
from tftrain import errors
from tftrain import evaluators
from tftrain import exports
from tftrain import files
from tftrain import preemption
from tftrain import reports
from tftrain import summaries
from tftrain import trainers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """How a call of `train` ended.

  Attributes:
    step: The run's step now.
    last_step: The step at which it ends.
    scalars: The newest values, by full name (`eval/test/accuracy`).
    already_done: There was nothing left to do, and nothing was touched.
    exit_code: 0, or 128 + the number of the signal that stopped the run.
  """

  step: int
  last_step: int
  scalars: Mapping[str, float]
  already_done: bool = False
  exit_code: int = 0


class Run:
  """The parts, built and checked; nothing is written until `train`.

  Args:
    model_dir: Where the run lives.
    trainer: Its Trainer.
    last_step: Where it ends.
    evaluators: What `evaluate` runs.
    checkpointer: Restores the Trainer.
    summary_writer: Takes the texts; closed at the end.
    actions: Who receives the Trainer's Reports, in this order.
    checkpoint: The Action that saves, after all of them.
    export: Whether to export the model at the end.
    facts: What run.json says of the run.
  """

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    *,
    trainer: trainers.Trainer,
    last_step: int,
    evaluators: Sequence[evaluators.Evaluator],
    checkpointer: checkpoints.Checkpointer,
    summary_writer: summaries.SummaryWriter,
    actions: Sequence[reports.Action],
    checkpoint: reports.Action,
    export: bool,
    facts: Mapping[str, Any],
  ):
    self.model_dir = pathlib.Path(model_dir)
    self.trainer = trainer
    self.last_step = last_step
    self.evaluators = tuple(evaluators)
    self.checkpointer = checkpointer
    self._summary_writer = summary_writer
    self._actions = tuple(actions)
    self._checkpoint = checkpoint
    self._export = export
    self._facts = dict(facts)

  def train(self, texts: Mapping[str, str] | None = None) -> Result:
    """Trains to the end, from the newest checkpoint if there is one.

    Args:
      texts: File name -> text to keep in model_dir and show in TensorBoard;
        the configuration.
    """
    restored = self.checkpointer.restore()
    if self._is_done():
      return self._result(already_done=True)
    files.make_directory(self.model_dir)
    with (
      files.lock(self.model_dir),
      preemption.stop_on_signal(self.trainer.request_stop) as stopper,
    ):
      if self.checkpointer.steps()[-1:] != [restored]:
        restored = self.checkpointer.restore()  # somebody trained meanwhile
      self._tidy()
      if restored is not None:
        print(f'Resumed from step {restored:,}', file=sys.stderr, flush=True)
      self._write_texts(texts or {}, fresh=restored is None)
      # What is published at a step is on disk before its checkpoint is: the
      # checkpoint comes last.
      try:
        self.trainer.train(self.last_step, [*self._actions, self._checkpoint])
      finally:  # also after an error: what was saved before it is committed
        try:
          self.checkpointer.wait()
        finally:
          self._summary_writer.close()
      if self.trainer.is_done(self.last_step):
        if self._export:
          self._export_step()
        self._write_end()
    return self._result(exit_code=stopper.exit_code)

  def restore(self) -> int:
    """Restores the newest checkpoint, which there must be; returns its step."""
    step = self.checkpointer.restore()
    if step is None:
      raise errors.CheckpointError(
        f'{self.checkpointer.directory} holds no checkpoint; train first, or '
        'check model_dir'
      )
    return step

  def evaluate(self) -> Result:
    """Evaluates the newest checkpoint; writes nothing."""
    self.restore()
    scalars = {
      f'eval/{evaluator.name}/{tag}': value
      for evaluator in self.evaluators
      for tag, value in (evaluator.evaluate() or {}).items()
    }
    return dataclasses.replace(self._result(), scalars=scalars)

  def export(self) -> pathlib.Path:
    """Exports the newest checkpoint to `export/<step>`."""
    self.restore()
    return self._export_step()

  def _export_step(self) -> pathlib.Path:
    directory = self._export_directory()
    if directory.exists():  # it was renamed into place, so it is whole
      return directory
    task, features = self.trainer.task, self.trainer.example_features()
    return exports.export_model(task, features, directory)

  def _is_done(self) -> bool:
    step = self.trainer.step
    finished = self._read_run().get('finished') or {}
    known = (
      finished.get('step') == step
      and finished.get('last_step', 0) >= self.last_step
    )
    if not step or not (known or self.trainer.is_done(self.last_step)):
      return False
    return not self._export or self._export_directory().exists()

  def _export_directory(self) -> pathlib.Path:
    return self.model_dir / 'export' / str(self.trainer.step)

  def _tidy(self) -> None:
    """Removes what a killed process left half-written."""
    files.remove_stale(self.model_dir)
    files.remove_stale(self.model_dir / 'export')
    self.checkpointer.tidy()

  def _result(self, **changes: Any) -> Result:
    return Result(
      step=self.trainer.step,
      last_step=self.last_step,
      scalars=_newest_scalars(self.model_dir / 'metrics.jsonl'),
      **changes,
    )

  def _write_texts(self, texts: Mapping[str, str], *, fresh: bool) -> None:
    for name, text in texts.items():
      files.write_text(self.model_dir / name, text)
      if fresh:
        self._summary_writer.write_text(name, text)
    self._write_start()

  def _read_run(self) -> dict[str, Any]:
    path = self.model_dir / 'run.json'
    try:
      run = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
      run = {}
    return run if isinstance(run, dict) else {}

  def _write_start(self) -> None:
    run = self._read_run()
    life = {
      'argv': sys.argv,
      'host': socket.gethostname(),
      'start_step': self.trainer.step,
      'started': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
      'python': platform.python_version(),
      'tensorflow': tf.__version__,
      'keras': keras.__version__,
    }
    run = {**run, **self._facts, 'lives': [*run.get('lives', []), life]}
    run = {**run, 'last_step': self.last_step, 'finished': None}
    files.write_json(self.model_dir / 'run.json', run)

  def _write_end(self) -> None:
    end = {'step': self.trainer.step, 'last_step': self.last_step}
    run = {**self._read_run(), 'finished': end}
    files.write_json(self.model_dir / 'run.json', run)


def _newest_scalars(path: pathlib.Path) -> dict[str, float]:
  scalars = {}
  for values in summaries.read_lines(path):
    source = values.pop('source')
    values.pop('step')
    scalars.update({f'{source}/{k}': float(v) for k, v in values.items()})
  return {k: v for k, v in scalars.items() if not math.isnan(v)}

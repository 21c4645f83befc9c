"""Run: the parts of an Experiment, assembled for one model_dir."""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import platform
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tftrain import errors
from tftrain.actions import exporter as exporter_lib
from tftrain.checkpoint import checkpointer as checkpointer_lib
from tftrain.data import open_files
from tftrain.distribute import devices
from tftrain.evaluation import evaluator as evaluator_lib
from tftrain.evaluation import predictor
from tftrain.experiment import _hparams
from tftrain.experiment import _parameter_overview
from tftrain.experiment import crash_dump
from tftrain.experiment import rewind as rewind_lib
from tftrain.experiment import run_record
from tftrain.experiment import warm_start
from tftrain.platform import files
from tftrain.platform import lock
from tftrain.platform import redaction
from tftrain.platform import signals as signals_lib
from tftrain.report import action as action_lib
from tftrain.summary import metrics_file as metrics_file_lib
from tftrain.summary import summary_writer as summary_writer_lib
from tftrain.train import trainer as trainer_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """Result of a call of `train` or `evaluate`.

  Attributes:
    step: Current step of the run.
    last_step: Step at which the run ends.
    scalars: Newest values, by full name (`eval/test/accuracy`).
    already_done: True if the run had finished before, and nothing was changed.
    exit_code: 0, or 128 + the number of the signal that stopped the run; 143 if
      `max_time` stopped it.
    seconds: Seconds of the whole run, by part of the goodput ledger.
  """

  step: int
  last_step: int
  scalars: Mapping[str, float]
  already_done: bool = False
  exit_code: int = 0
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Prediction(NamedTuple):
  """Result of a call of `predict`.

  Attributes:
    step: Step of the checkpoint.
    examples: Number of examples in the output; 0 if a signal came first.
    exit_code: 0, or 128 + the number of the signal that stopped the prediction.
  """

  step: int
  examples: int
  exit_code: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Options of a Run: initial weights, rewinds, signals and export.

  Attributes:
    export: Whether to export the model at the end.
    max_seconds: Seconds after which the run stops in any case, to be resumed;
      None means no limit.
    init_from: Source of the weights of a new run.
    rewind: Policy for a loss that is not finite; None ends the run.
    stop_signals: Names of the signals that stop the run.
    save_signals: Names of the signals that save a checkpoint.
  """

  export: bool = True
  max_seconds: float | None = None
  init_from: warm_start.WarmStart | None = None
  rewind: rewind_lib.Rewind | None = None
  stop_signals: Sequence[str] = signals_lib.STOP_SIGNALS
  save_signals: Sequence[str] = signals_lib.SAVE_SIGNALS


class Run:
  """Parts of a run, built and checked; nothing is written until `train`.

  Args:
    model_dir: Directory of the run.
    trainer: Trainer of the run.
    last_step: Step at which the run ends.
    evaluators: Evaluators that `evaluate` runs.
    checkpointer: Checkpointer of the Trainer.
    summary_writer: Writer of TensorBoard summaries; closed at the end.
    metrics_file: File of the metrics.
    exporter: Exporter of the model.
    actions: Actions that receive the Trainer's Reports, in this order.
    checkpoint: Actions that save checkpoints, called after `actions`.
    options: Initial weights, rewinds, signals and export.
    facts: Facts about the run, for run.json.
  """

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    *,
    trainer: trainer_lib.Trainer,
    last_step: int,
    evaluators: Sequence[evaluator_lib.Evaluator],
    checkpointer: checkpointer_lib.Checkpointer,
    summary_writer: summary_writer_lib.SummaryWriter,
    metrics_file: metrics_file_lib.MetricsFile,
    exporter: exporter_lib.Exporter,
    actions: Sequence[action_lib.ActionLike],
    checkpoint: Sequence[action_lib.ActionLike],
    options: Options,
    facts: Mapping[str, Any],
  ):
    self.model_dir = files.run_directory(model_dir)
    self.trainer = trainer
    self.last_step = last_step
    self.evaluators = tuple(evaluators)
    self.checkpointer = checkpointer
    self.summary_writer = summary_writer
    self._metrics_file = metrics_file
    self._exporter = exporter
    # Checkpoints come last, so that the metrics of a step are on disk before
    # its checkpoint.
    starts = [exporter.start_process] if options.export else []
    self._actions = action_lib.as_actions([*actions, *starts, *checkpoint])
    self._options = options
    self._facts = dict(facts)
    for action in self._actions:
      action.bind(self)

  def train(
    self,
    texts: Mapping[str, str] | None = None,
    bindings: Sequence[str] = (),
  ) -> Result:
    """Trains to the end, from the newest checkpoint if there is one.

    Args:
      texts: File name -> text to keep in model_dir and show in TensorBoard,
        such as the configuration.
      bindings: gin bindings of the command line, for the HPARAMS tab.
    """
    workers = self.trainer.workers
    if not workers.leads:
      with self._stopper(), workers.leading() as code:
        return self._result(exit_code=code[0])
    with workers.leading() as code:
      result = self._lead(texts or {}, bindings)
      code[0] = result.exit_code
      return result

  def _lead(self, texts: Mapping[str, str], bindings: Sequence[str]) -> Result:
    restored = self.checkpointer.restore()
    if self._is_done():
      return self._result(already_done=True)
    files.make_directory(self.model_dir)
    with contextlib.ExitStack() as stack:
      stack.callback(self._exporter.close)
      with files.convert_os_errors(self.model_dir):
        stack.enter_context(lock.lock(self.model_dir))
        stopper = stack.enter_context(self._stopper())
        self._exporter.interrupting = stopper.interrupting
        self._start(restored, texts, bindings)
      try:
        self._train()
      except errors.NonFiniteError as error:
        if type(error) is errors.NonFiniteError:  # a spike is detected later
          crash_dump.write(self.model_dir, self.trainer, error, texts)
        raise
      finally:  # after an error, too: commits pending saves
        try:
          with self.trainer.ledger.part('checkpoint'):
            self.checkpointer.wait(last=True)
        finally:
          self.summary_writer.close()
      with files.convert_os_errors(self.model_dir):
        done = self._end(stopper)
    # Without a signal to this worker, another worker was stopped.
    code = stopper.exit_code or 128 + signal.SIGTERM
    return self._result(exit_code=0 if done else int(code))

  def _start(
    self,
    restored: int | None,
    texts: Mapping[str, str],
    bindings: Sequence[str],
  ) -> None:
    """Prepares the first step, under the lock of model_dir."""
    if self.checkpointer.steps()[-1:] != [restored]:
      restored = self.checkpointer.restore()  # trained by another process
    self._tidy()
    self.checkpointer.check_space()
    if restored is not None:
      print(f'Resumed from step {restored:,}', file=sys.stderr, flush=True)
    elif self._options.init_from:
      warm_start.load(self.trainer.task, self._options.init_from)
    self._begin(restored)
    self._write_texts(texts, fresh=restored is None)
    if restored is None:
      self._show_overview(bindings)

  def _stopper(self) -> Any:
    options = self._options
    return signals_lib.stop_on_signal(
      self.trainer.request_stop,
      self.trainer.request_save,
      stop=options.stop_signals,
      save=options.save_signals,
      max_seconds=options.max_seconds,
    )

  def _begin(self, step: int | None) -> None:
    """Shares the state with all workers, and drops records after `step`."""
    self.trainer.workers.share(self.trainer)
    published = self._metrics_file.begin(step or 0)
    self.summary_writer.begin(step, published)
    self.trainer.loop.record_to(self.summary_writer.in_steps)

  def _resume_after_rewind(self, step: int) -> None:
    """Resumes from `step` after a rewind."""
    self._begin(step)
    with files.convert_os_errors(self.model_dir):
      self._exporter.discard_after(step)

  def _train(self) -> None:
    self.trainer.prepare()
    print(self.trainer.jit, file=sys.stderr, flush=True)
    if self._options.rewind is None:
      self.trainer.train(self.last_step, self._actions)
      return
    rewind_lib.train(
      self.trainer,
      self.checkpointer,
      self._options.rewind,
      self._resume_after_rewind,
      self.last_step,
      self._actions,
    )

  def _end(self, stopper: signals_lib.Stopper) -> bool:
    """Exports and records the end; returns False if the run must resume."""
    if not self.trainer.is_done(self.last_step):
      return False
    try:
      if self._options.export:
        with stopper.interrupting(), self.trainer.ledger.part('export'):
          self._exporter.export(self.trainer.step)
    except signals_lib.Interrupted:  # the next attempt exports
      return False
    self._write_end()
    return True

  def restore(self, which: str = 'latest') -> int:
    """Restores a checkpoint; returns its step.

    Args:
      which: `latest`, `best`, or a step.

    Raises:
      CheckpointError: If this checkpoint does not exist.
    """
    directory = self.checkpointer.directory
    if which == 'latest':
      step = self.checkpointer.restore()
      if step is None:
        raise errors.CheckpointError(
          f'{directory} holds no checkpoint; train first, or check model_dir'
        )
      return step
    step = self.checkpointer.best_step() if which == 'best' else None
    if which.isdecimal():
      step = int(which)
    if step is None or not self.checkpointer.restore_step(step):
      why = ' (is Experiment.best set?)' if which == 'best' else ''
      known = ', '.join(map(str, self.checkpointer.steps())) or 'none'
      raise errors.CheckpointError(
        f'{directory} holds no checkpoint {which!r}{why}; there are {known}'
      )
    return step

  def evaluate(self, which: str = 'latest') -> Result:
    """Evaluates a checkpoint; writes nothing."""
    self.restore(which)
    scalars = {
      f'eval/{evaluator.name}/{tag}': value
      for evaluator in self.evaluators
      for tag, value in (evaluator.evaluate() or {}).items()
    }
    return dataclasses.replace(self._result(), scalars=scalars)

  def export(self, which: str = 'latest') -> pathlib.Path:
    """Exports a checkpoint to `export/<step>`."""
    return self._exporter.export(self.restore(which))

  def predict(
    self, given: str, output: str, which: str = 'latest'
  ) -> Prediction:
    """Writes what the model serves for each example of some files.

    The files are read like the evaluation data; see `data.open_input`.

    Args:
      given: Path of a file, or a glob.
      output: Path of the result, which ends in `.jsonl` or `.npz`.
      which: Checkpoint to use: `latest`, `best`, or a step.

    Raises:
      ConfigError: If the Experiment has no evaluation data.
    """
    if not self.evaluators:
      raise errors.ConfigError(
        'predict reads files as the evaluation does, and there is none; give '
        'Experiment.eval_data'
      )
    data = open_files.open_input(given, like=self.evaluators[0].pipeline)
    step = self.restore(which)
    with self._stopper() as stopper:
      examples = predictor.predict(
        self.trainer.task,
        data,
        output,
        strategy=self.trainer.strategy,
        stop=self.trainer.stop_variable,
        origin={'step': step, 'files': open_files.file_stamps(given)},
      )
    code = stopper.exit_code if examples is None else 0
    return Prediction(step, examples or 0, code)

  def _is_done(self) -> bool:
    step = self.trainer.step
    finished = run_record.read_record(self.model_dir).get('finished') or {}
    known = (
      finished.get('step') == step
      and finished.get('last_step', 0) >= self.last_step
    )
    if not step or not (known or self.trainer.is_done(self.last_step)):
      return False
    return not self._options.export or self._exporter.path(step).exists()

  def _tidy(self) -> None:
    """Removes staging files that a killed process left."""
    below = (
      '',
      'export',
      'train',
      *(f'eval/{e.name}' for e in self.evaluators),
    )
    for name in below:
      files.remove_stale(self.model_dir / name)
    self.checkpointer.tidy()

  def _result(self, **changes: Any) -> Result:
    return Result(
      step=self.trainer.step,
      last_step=self.last_step,
      scalars=run_record.newest_scalars(self.model_dir),
      seconds=self.trainer.ledger.read(),
      **changes,
    )

  def _write_texts(self, texts: Mapping[str, str], *, fresh: bool) -> None:
    for name, text in texts.items():
      self.show(name, text, in_tensorboard=fresh)
    self._write_start()

  def show(self, name: str, text: str, *, in_tensorboard: bool = True) -> None:
    """Keeps a text in model_dir, and shows it in TensorBoard."""
    files.write_text(self.model_dir / name, text)
    if in_tensorboard:
      self.summary_writer.write_text(name, text)

  def _show_overview(self, bindings: Sequence[str]) -> None:
    """Shows parameters, model graph and hyperparameters in TensorBoard."""
    task, facts = self.trainer.task, {**self._facts, 'steps': self.last_step}
    name = str(self.model_dir.absolute())
    row = _hparams.of_run(task, facts, redaction.redacted_argv(bindings), name)
    self.summary_writer.show(0, _parameter_overview.of_task(task))
    self.summary_writer.show_run(row)

  def attempt(self) -> dict[str, Any]:
    """Returns facts about this attempt of the run, for run.json."""
    facts = self.trainer.facts()
    evals = {f'eval/{e.name}': e.pipeline for e in self.evaluators}
    attempt = {
      'argv': redaction.redacted_argv(sys.argv),
      'host': socket.gethostname(),
      'start_step': self.trainer.step,
      'started': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
      'python': platform.python_version(),
      'tensorflow': tf.__version__,
      'keras': keras.__version__,
      'git': run_record.code_version(),
      'seed': facts['seed'],
      'replicas': self.trainer.strategy.num_replicas_in_sync,
      'devices': devices.facts(self.trainer.strategy),
      'data': run_record.data_fingerprints(
        {
          'train': facts['data'],
          **{name: data.fingerprint() for name, data in evals.items()},
        }
      ),
    }
    return {name: fact for name, fact in attempt.items() if fact is not None}

  def _write_start(self) -> None:
    record = run_record.read_record(self.model_dir)
    ledger = self.trainer.ledger
    began = record.get('began', ledger.started)
    if not self.trainer.step:
      ledger.begin(began)
    elif record.get('finished'):
      ledger.go_on_from(record.get('seconds', {}))
    self._note(
      **self._facts,
      began=began,
      attempts=[*record.get('attempts', []), self.attempt()],
      last_step=self.last_step,
      finished=None,
      passed_over=self.trainer.skipped_steps.facts(),
    )

  def _write_end(self) -> None:
    self._note(
      finished={'step': self.trainer.step, 'last_step': self.last_step},
      seconds={k: round(v, 3) for k, v in self.trainer.ledger.read().items()},
      passed_over=self.trainer.skipped_steps.facts(),
    )

  def _note(self, **facts: Any) -> None:
    """Updates run.json."""
    record = {**run_record.read_record(self.model_dir), **facts}
    files.write_json(self.model_dir / run_record.NAME, record)


def about(
  model_dir: pathlib.Path, trainer: trainer_lib.Trainer
) -> dict[str, Any]:
  """Returns facts about a run for model.md: title -> text or table."""
  config = model_dir / 'config.gin'
  facts = {
    'Metrics': run_record.newest_scalars(model_dir),
    'Data': trainer.facts()['data'],
  }
  if config.exists():
    facts['Configuration'] = config.read_text(encoding='utf-8')
  return facts

"""Experiment: the recipe of a run, and the assembly of its parts."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import dataclasses
import pathlib
from typing import Any

from absl import logging
import keras

from tftrain import errors
from tftrain.actions import digests as digests_lib
from tftrain.actions import early_stopping
from tftrain.actions import exporter as exporter_lib
from tftrain.checkpoint import checkpointer as checkpointer_lib
from tftrain.checkpoint import retention
from tftrain.data import dataset_pipeline
from tftrain.data import limit
from tftrain.data import pipeline as pipeline_lib
from tftrain.distribute import coordinator
from tftrain.distribute import strategy as strategy_lib
from tftrain.evaluation import evaluator as evaluator_lib
from tftrain.experiment import _continuous_eval
from tftrain.experiment import rewind as rewind_lib
from tftrain.experiment import run as run_lib
from tftrain.experiment import warm_start
from tftrain.platform import files
from tftrain.platform import goodput
from tftrain.platform import signals as signals_lib
from tftrain.report import action as action_lib
from tftrain.report import dispatch
from tftrain.report import every as every_lib
from tftrain.report import interval
from tftrain.step import update_options
from tftrain.summary import metrics_file as metrics_file_lib
from tftrain.summary import progress_bar
from tftrain.summary import summary_writer as summary_writer_lib
from tftrain.task import task as task_lib
from tftrain.train import metrics
from tftrain.train import trainer as trainer_lib

_PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Recipe of a run: task, data, length, saves, evaluation and devices.

  The Task and the data are given as factories, so that models are created
  inside the scope of the strategy.

  >>> Experiment(make_task, train_data, test_data, steps=1000).train('/tmp/run')

  Intervals are steps (100), a time ('10m') or epochs ('2 epochs'). Of several
  intervals, the shortest counts: `checkpoint_every=[1000, '10m']`.

  Attributes:
    task: Factory of the Task.
    train_data: Factory of the training data: a Pipeline, a dataset of global
      batches, or a re-iterable of batches.
    eval_data: Factory of the evaluation data, or name -> factory; None means no
      evaluation.
    steps: Last step of the run; give either `steps` or `epochs`.
    epochs: Length of the run in epochs, if the number of examples is known.
    steps_per_loop: Most steps in one call of the compiled loop.
    log_every: Interval over which train metrics are averaged: steps or epochs.
    eval_every: Interval of evaluations; the last is at the end.
    checkpoint_every: Interval of saves, or several; the last is at the end.
    keep: Number of newest checkpoints to keep.
    keep_every: Steps between checkpoints that are kept for good; None means
      no such checkpoints.
    best: Metric whose best checkpoints are kept, too.
    durable: Whether a save must survive a power cut.
    max_failed_saves: Number of failed saves in a row that the run tolerates.
    max_time: Time after which the run stops in any case, such as '11h', to be
      resumed later.
    init_from: Source of the weights of a new run: a WarmStart, or the path of a
      checkpoint.
    rewind: Policy for a loss that is not finite; None ends the run.
    early_stop: EarlyStopping, which ends the run; None means no early stop.
    export: Whether to export a SavedModel at the end, or an Export with further
      options.
    seed: Seed of the weights, the order of the data and dropout.
    strategy: Name of the strategy; see `make_strategy`.
    all_reduce: All-reduce algorithm for gradients; see `make_strategy`.
    bucket_mb: Megabytes of gradients per all-reduce; None leaves it to
      TensorFlow.
    update: Options of the training step: clipping, accumulation, moving
      averages and others.
    precision: Keras dtype policy of the Task's layers: `float32`,
      `mixed_bfloat16` or `mixed_float16`.
    actions: Further Actions for the training Reports.
    overfit_batches: Number of first batches that training repeats; None trains
      on all data.
    limit_eval_batches: Number of batches per evaluation; None means all.
    max_traces: Most compilations of the training loop, above which the run
      fails. None means no limit, but a warning.

  Raises:
    ConfigError: If a value is invalid.
  """

  task: Callable[[], task_lib.Task]
  train_data: Callable[[], Any]
  eval_data: Callable[[], Any] | Mapping[str, Callable[[], Any]] | None = None
  _: dataclasses.KW_ONLY
  steps: int | None = None
  epochs: float | None = None
  steps_per_loop: int = 100
  log_every: interval.Interval = 100
  eval_every: interval.Interval = 1000
  checkpoint_every: interval.Interval | Sequence[interval.Interval] = 1000
  keep: int = 3
  keep_every: int | None = None
  best: retention.KeepBest | None = None
  durable: bool = False
  max_failed_saves: int = 0
  max_time: str | None = None
  init_from: warm_start.WarmStart | str | None = None
  rewind: rewind_lib.Rewind | None = None
  early_stop: early_stopping.EarlyStopping | None = None
  export: exporter_lib.Export | bool = True
  seed: int = 0
  strategy: str = 'auto'
  all_reduce: str = 'auto'
  bucket_mb: float | None = None
  update: update_options.Update = update_options.Update()
  precision: str = 'float32'
  actions: Sequence[action_lib.ActionLike] = ()
  overfit_batches: int | None = None
  limit_eval_batches: int | None = None
  max_traces: int | None = None

  def __post_init__(self) -> None:
    _check_values(self, self._eval_data())

  def train(
    self,
    model_dir: str | pathlib.Path,
    *,
    evaluate: bool = True,
    texts: Mapping[str, str] | None = None,
  ) -> run_lib.Result:
    """Trains to the end; the same call resumes an interrupted run.

    Args:
      model_dir: Directory of the run.
      evaluate: Whether to evaluate during the run.
      texts: File name -> text to keep in model_dir and show in TensorBoard.
    """
    return self.prepare(model_dir, evaluate=evaluate).train(texts)

  def evaluate(
    self, model_dir: str | pathlib.Path, checkpoint: str = 'latest'
  ) -> run_lib.Result:
    """Evaluates a checkpoint in `model_dir`: `latest`, `best` or a step."""
    return self.prepare(model_dir).evaluate(checkpoint)

  def export_model(
    self, model_dir: str | pathlib.Path, checkpoint: str = 'latest'
  ) -> pathlib.Path:
    """Exports a checkpoint in `model_dir`; returns the export's directory."""
    return self.prepare(model_dir).export(checkpoint)

  def all_data(self) -> Iterator[tuple[str, pipeline_lib.Pipeline]]:
    """Yields (source, Pipeline); sources are `train`, `eval/test`, ..."""
    yield 'train', self._train_data()
    for name, make in self._eval_data().items():
      yield f'eval/{name}', dataset_pipeline.as_pipeline(make, training=False)

  def prepare(
    self,
    model_dir: str | pathlib.Path,
    *,
    evaluate: bool = True,
    stop_signals: Sequence[str] = signals_lib.STOP_SIGNALS,
    save_signals: Sequence[str] = signals_lib.SAVE_SIGNALS,
    started: float | None = None,
    quiet: bool = False,
    recipe: Mapping[str, Any] | None = None,
  ) -> run_lib.Run:
    """Builds and checks every part; writes nothing.

    Args:
      model_dir: Directory of the run.
      evaluate: Whether to evaluate during the run.
      stop_signals: Names of the signals that stop the run.
      save_signals: Names of the signals that save a checkpoint.
      started: Start of this attempt in seconds, as of time.time(); None means
        now.
      quiet: Whether to hide the progress bar.
      recipe: Facts by name that must be equal on all workers.
    """
    trainer, data = self._make_trainer(started, recipe)
    per_epoch = data.steps_per_epoch
    writer, metrics_file, publish = _publishers(model_dir, quiet)
    early_stop = self._early_stop(evaluate)
    further, hear_all = dispatch.copy_for_run(self.actions)
    publish += [*([early_stop] if early_stop else []), *hear_all]
    measured: list[evaluator_lib.Evaluator] = []
    exporter = self._exporter(model_dir, trainer, measured)
    checkpointer = self._checkpointer(
      model_dir,
      trainer,
      writer,
      metrics_file,
      [*publish, *further, exporter],
    )
    publish.append(checkpointer.measure)
    if exporter.options.on_best:
      publish.append(exporter.if_best)
    if evaluate:
      measured += self._evaluators(trainer, publish)
    self._check_monitored(early_stop, trainer, measured, evaluate)
    if self.export:
      exporter.check()
    if exporter.options.every:
      every = interval.resolved('export', exporter.options.every, per_epoch)
      further.append(every_lib.Every(every, exporter))
    eval_every = interval.resolved('eval_every', self.eval_every, per_epoch)
    timed = [every_lib.Every(eval_every, e) for e in measured]
    return run_lib.Run(
      model_dir,
      trainer=trainer,
      last_step=self._last_step(trainer, data),
      evaluators=measured,
      checkpointer=checkpointer,
      summary_writer=writer,
      metrics_file=metrics_file,
      exporter=exporter,
      actions=[*publish, *timed, *further],
      checkpoint=self._saves(checkpointer, eval_every, per_epoch),
      options=self._options(stop_signals, save_signals),
      facts=self._facts(trainer),
    )

  def _last_step(
    self, trainer: trainer_lib.Trainer, data: pipeline_lib.Pipeline
  ) -> int:
    """Returns the last step; warns if the data ends earlier than requested."""
    asked = interval.last_step(self.steps, self.epochs, data.steps_per_epoch)
    last = trainer.last_step(asked)
    if last < asked:
      logging.warning(
        'The training data ends at step %d of %d%s; let it repeat '
        '(epochs=None), or ask for fewer steps.',
        last,
        asked,
        f' ({data.num_examples} examples)' if data.num_examples else '',
      )
    return last

  def _saves(
    self,
    checkpointer: checkpointer_lib.Checkpointer,
    eval_every: interval.Interval,
    per_epoch: float | None,
  ) -> list[action_lib.ActionLike]:
    """Returns the Actions that save checkpoints."""
    every = interval.all_resolved(
      'checkpoint_every', self.checkpoint_every, per_epoch
    )
    saves: list[action_lib.ActionLike] = [every_lib.Every(every, checkpointer)]
    if self.best:
      saves.insert(0, every_lib.Every(eval_every, checkpointer.save_if_best))
    return saves

  def _check_monitored(
    self,
    early_stop: early_stopping.EarlyStopping | None,
    trainer: trainer_lib.Trainer,
    measured: Sequence[evaluator_lib.Evaluator],
    evaluate: bool,
  ) -> None:
    for name, monitor in (('early_stop', early_stop), ('best', self.best)):
      if monitor and (evaluate or not monitor.metric.startswith('eval/')):
        metrics.check_monitored(name, monitor.metric, trainer.tags, measured)

  def _early_stop(self, evaluate: bool) -> early_stopping.EarlyStopping | None:
    """Returns a copy, because it has state; None without its evaluation."""
    given = self.early_stop
    if given and not evaluate and given.metric.startswith('eval/'):
      return None
    return copy.copy(given)

  def _facts(self, trainer: trainer_lib.Trainer) -> dict[str, Any]:
    """Returns facts about the run, for run.json."""
    start = self.init_from
    return {
      'seed': self.seed,
      'init_from': getattr(start, 'path', start),
      'strategy': self.strategy,
      'replicas': trainer.strategy.num_replicas_in_sync,
    }

  def _exporter(
    self,
    model_dir: str | pathlib.Path,
    trainer: trainer_lib.Trainer,
    measured: Sequence[evaluator_lib.Evaluator],
  ) -> exporter_lib.Exporter:
    """Returns the Exporter.

    Exports are verified on the first of `measured`, which is filled later.
    """
    given = self.export

    def samples() -> exporter_lib.InputSource:
      return measured[0] if measured else trainer

    return exporter_lib.Exporter(
      model_dir,
      trainer.task,
      samples,
      given
      if isinstance(given, exporter_lib.Export)
      else exporter_lib.Export(),
      best=self.best,
      about=lambda: run_lib.about(files.run_directory(model_dir), trainer),
    )

  def _checkpointer(
    self,
    model_dir: str | pathlib.Path,
    trainer: trainer_lib.Trainer,
    writer: summary_writer_lib.SummaryWriter,
    metrics_file: metrics_file_lib.MetricsFile,
    actions: Sequence[action_lib.ActionLike],
  ) -> checkpointer_lib.Checkpointer:
    def before_commit() -> None:
      writer.flush()
      if self.durable:
        writer.sync()
        metrics_file.sync()

    return checkpointer_lib.Checkpointer(
      model_dir,
      trainer,
      keep=self.keep,
      keep_every=self.keep_every,
      best=self.best,
      keep_behind=self.rewind.skip_batches if self.rewind else 0,
      durable=self.durable,
      max_failures=self.max_failed_saves,
      actions=actions,
      ledger=trainer.ledger,
      before_commit=before_commit,
    )

  def _options(
    self, stop_signals: Sequence[str], save_signals: Sequence[str]
  ) -> run_lib.Options:
    limit, start = self.max_time, self.init_from
    if isinstance(start, str):
      start = warm_start.WarmStart(start)
    return run_lib.Options(
      export=bool(self.export),
      max_seconds=None if limit is None else interval.seconds(limit),
      init_from=start,
      rewind=self.rewind,
      stop_signals=stop_signals,
      save_signals=save_signals,
    )

  def follow(
    self,
    model_dir: str | pathlib.Path,
    *,
    timeout: float = 600.0,
    stop_signals: Sequence[str] = signals_lib.STOP_SIGNALS,
    quiet: bool = False,
  ) -> _continuous_eval.ContinuousEvaluator:
    """Builds the continuous evaluation of a run that another process trains.

    Args:
      model_dir: Directory of the run.
      timeout: Seconds without a training process after which to fail.
      stop_signals: Names of the signals that stop the evaluation.
      quiet: Whether to hide the progress bar.
    """
    trainer, _ = self._make_trainer()
    writer, metrics_file, publish = _publishers(
      model_dir, quiet, _continuous_eval.METRICS
    )
    return _continuous_eval.ContinuousEvaluator(
      model_dir,
      trainer=trainer,
      checkpointer=checkpointer_lib.Checkpointer(model_dir, trainer),
      evaluators=self._evaluators(trainer, publish),
      summary_writer=writer,
      metrics_file=metrics_file,
      timeout=timeout,
      stop_signals=stop_signals,
    )

  def _make_trainer(
    self,
    started: float | None = None,
    recipe: Mapping[str, Any] | None = None,
  ) -> tuple[trainer_lib.Trainer, pipeline_lib.Pipeline]:
    ledger = goodput.Ledger(started)
    keras.utils.set_random_seed(self.seed)
    strategy = strategy_lib.make_strategy(
      self.strategy, all_reduce=self.all_reduce, bucket_mb=self.bucket_mb
    )
    team = coordinator.of(strategy)
    team.check_same({'seed': self.seed, **(recipe or {})})
    data = self._train_data()
    data.check_resumable()
    trainer = trainer_lib.Trainer(
      self._make_task(strategy),
      data,
      strategy=strategy,
      steps_per_loop=self.steps_per_loop,
      log_every=interval.in_steps(
        'log_every', self.log_every, data.steps_per_epoch
      ),
      seed=self.seed,
      update=self.update,
      ledger=ledger,
      max_traces=self.max_traces,
    )
    digests_lib.check_same_data(trainer.workers, 'its data', trainer)
    return trainer, data

  def _make_task(self, strategy: Any) -> task_lib.Task:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(self.precision)
    try:
      with strategy.scope():
        task = self.task()
    finally:
      keras.config.set_dtype_policy(before)
    if not isinstance(task, task_lib.Task):
      raise errors.TaskError(
        f'Experiment.task made a {type(task).__name__}; let it return a '
        'tftrain.Task'
      )
    return task

  def _evaluators(
    self,
    trainer: trainer_lib.Trainer,
    actions: Sequence[action_lib.ActionLike],
  ) -> list[evaluator_lib.Evaluator]:
    found = [
      evaluator_lib.Evaluator(
        trainer.task,
        make_data(),
        strategy=trainer.strategy,
        name=name,
        actions=actions,
        stop=trainer.stop_variable,
        ledger=trainer.ledger,
      )
      for name, make_data in self._eval_data().items()
    ]
    for evaluator in found:
      what = f'the data of evaluation {evaluator.name!r}'
      digests_lib.check_same_data(trainer.workers, what, evaluator)
    return found

  def _eval_data(self) -> Mapping[str, Callable[[], Any]]:
    given = self.eval_data or {}
    named = given if isinstance(given, Mapping) else {'test': given}
    return limit.all_limited(named, self.limit_eval_batches)

  def _train_data(self) -> pipeline_lib.Pipeline:
    data = dataset_pipeline.as_pipeline(self.train_data, training=True)
    return limit.limited(data, self.overfit_batches, 'train', repeat=True)


def _publishers(
  model_dir: str | pathlib.Path, quiet: bool, name: str = 'metrics.jsonl'
) -> tuple[
  summary_writer_lib.SummaryWriter,
  metrics_file_lib.MetricsFile,
  list[action_lib.ActionLike],
]:
  """Returns (summary writer, metrics file, Actions for each Report)."""
  writer = summary_writer_lib.SummaryWriter(model_dir)
  metrics_file = metrics_file_lib.MetricsFile(model_dir, name)
  shown = [] if quiet else [progress_bar.ProgressBar()]
  return writer, metrics_file, [writer, metrics_file, *shown]


def _check_values(recipe: Experiment, names: Iterable[str]) -> None:
  """Raises ConfigError if a value of an Experiment is invalid.

  Args:
    recipe: An Experiment.
    names: Names of its evaluation data.
  """
  for name, value in (('task', recipe.task), ('train_data', recipe.train_data)):
    if not callable(value) or isinstance(value, task_lib.Task):
      raise errors.ConfigError(
        f'Experiment.{name} is a {type(value).__name__}; give the function '
        'that makes it (in gin: @name, without parentheses)'
      )
  if (recipe.steps is None) == (recipe.epochs is None):
    raise errors.ConfigError(
      'Experiment needs either steps or epochs; '
      + ('it has neither' if recipe.steps is None else 'it has both')
    )
  for name in (
    'steps',
    'epochs',
    'overfit_batches',
    'limit_eval_batches',
    'max_traces',
  ):
    value = getattr(recipe, name)
    fraction = name == 'epochs' and isinstance(value, float) and value > 0
    if value is not None and not (fraction or errors.is_count(value)):
      raise errors.ConfigError(
        f'Experiment.{name} must be a positive number, got {value!r}'
      )
  if recipe.precision not in _PRECISIONS:
    raise errors.ConfigError(
      f'Experiment.precision = {recipe.precision!r}; choose one of '
      f'{", ".join(_PRECISIONS)}'
    )
  _check_kinds(recipe)
  if recipe.max_time is not None:
    interval.seconds(recipe.max_time)
  for name in names:
    files.check_name(name, 'Experiment.eval_data: the name')
  if not isinstance(recipe.seed, int) or not 0 <= recipe.seed < 2**32:
    raise errors.ConfigError(
      f'Experiment.seed must be between 0 and 2**32 - 1, got {recipe.seed!r}'
    )


def _check_kinds(recipe: Experiment) -> None:
  for name, kind, factory in (
    ('update', update_options.Update, 'Update'),
    ('best', retention.KeepBest, 'checkpoint.KeepBest'),
    ('rewind', rewind_lib.Rewind, 'experiment.Rewind'),
    ('export', exporter_lib.Export | bool, 'actions.Export'),
    ('init_from', warm_start.WarmStart | str, 'experiment.WarmStart'),
  ):
    value = getattr(recipe, name)
    if value is not None and not isinstance(value, kind):
      raise errors.ConfigError(
        f'Experiment.{name} is a {type(value).__name__}; give '
        f'tftrain.{factory}(...) (in gin: @{factory.rpartition(".")[2]}(), '
        'with parentheses)'
      )

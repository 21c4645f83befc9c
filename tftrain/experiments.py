"""Experiment: the recipe of a run, and how its parts are put together."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import dataclasses
import pathlib
import re
from typing import Any

from absl import logging
import keras

from tftrain import actions as actions_lib
from tftrain import checkpoints
from tftrain import errors
from tftrain import evaluators
from tftrain import exports
from tftrain import inputs
from tftrain import progress
from tftrain import reports
from tftrain import runs
from tftrain import strategies
from tftrain import summaries
from tftrain import tasks
from tftrain import trainers
from tftrain import updates

Interval = int | str

_PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What to learn, from what, for how long. Made of factories, so that models
  are born inside the strategy's scope.

  >>> Experiment(make_task, train_data, test_data, steps=1000).train('/tmp/run')

  Intervals are steps (100), a time ('10m') or epochs ('2 epochs').

  Attributes:
    task: Makes the Task.
    train_data: Makes the training data: a Pipeline, a dataset of global
      batches, or a re-iterable of batches.
    eval_data: Makes the evaluation data, or name -> function that does.
    steps: Where the run ends, in steps; or
    epochs: in epochs, where the number of examples is known.
    steps_per_loop: Most steps in one call of the compiled loop.
    log_every: Steps over which train metrics are averaged.
    eval_every: How often to evaluate; always at the end.
    checkpoint_every: How often to save; always at the end.
    keep: How many checkpoints to keep.
    early_stop: Ends the run when a metric stops improving.
    export: Whether to export a SavedModel at the end.
    seed: Seeds the weights, the data's order and the dropout.
    strategy: Which devices: `auto`, `one_device` or `mirrored`.
    update: How a batch becomes new weights: clipping, accumulation, moving
      averages and the like.
    precision: The Keras dtype policy of the Task's layers: `float32`,
      `mixed_bfloat16` or `mixed_float16`.
    actions: Further Actions for the training Reports.
  """

  task: Callable[[], tasks.Task]
  train_data: Callable[[], Any]
  eval_data: Callable[[], Any] | Mapping[str, Callable[[], Any]] | None = None
  _: dataclasses.KW_ONLY
  steps: int | None = None
  epochs: float | None = None
  steps_per_loop: int = 100
  log_every: Interval = 100
  eval_every: Interval = 1000
  checkpoint_every: Interval = 1000
  keep: int = 3
  early_stop: actions_lib.EarlyStopping | None = None
  export: bool = True
  seed: int = 0
  strategy: str = 'auto'
  update: updates.Update = updates.Update()
  precision: str = 'float32'
  actions: Sequence[reports.Action] = ()

  def __post_init__(self) -> None:
    for name, value in (('task', self.task), ('train_data', self.train_data)):
      if not callable(value) or isinstance(value, tasks.Task):
        raise errors.ConfigError(
          f'Experiment.{name} is a {type(value).__name__}; give the function '
          'that makes it (in gin: @name, without parentheses)'
        )
    if (self.steps is None) == (self.epochs is None):
      raise errors.ConfigError(
        'Experiment needs either steps or epochs; '
        + ('it has neither' if self.steps is None else 'it has both')
      )
    for name, kinds in (('steps', int), ('epochs', int | float)):
      value = getattr(self, name)
      if value is not None and (not isinstance(value, kinds) or value <= 0):
        raise errors.ConfigError(
          f'Experiment.{name} must be a positive number, got {value!r}'
        )
    if self.precision not in _PRECISIONS:
      raise errors.ConfigError(
        f'Experiment.precision = {self.precision!r}; choose one of '
        f'{", ".join(_PRECISIONS)}'
      )
    if not isinstance(self.update, updates.Update):
      raise errors.ConfigError(
        f'Experiment.update is a {type(self.update).__name__}; give '
        'tftrain.Update(...) (in gin: @Update(), with parentheses)'
      )
    if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
      raise errors.ConfigError(
        f'Experiment.seed must be between 0 and 2**32 - 1, got {self.seed!r}'
      )

  def train(
    self,
    model_dir: str | pathlib.Path,
    *,
    evaluate: bool = True,
    texts: Mapping[str, str] | None = None,
  ) -> runs.Result:
    """Trains to the end; the same call resumes what was interrupted."""
    return self.prepare(model_dir, evaluate=evaluate).train(texts)

  def evaluate(self, model_dir: str | pathlib.Path) -> runs.Result:
    """Evaluates the newest checkpoint in `model_dir`."""
    return self.prepare(model_dir).evaluate()

  def export_model(self, model_dir: str | pathlib.Path) -> pathlib.Path:
    """Exports the newest checkpoint in `model_dir`; returns where it went."""
    return self.prepare(model_dir).export()

  def all_data(self) -> Iterator[tuple[str, inputs.Pipeline]]:
    """(source as in Reports, its Pipeline): `train`, `eval/test`, ..."""
    yield 'train', inputs.as_pipeline(self.train_data, training=True)
    for name, make in self._eval_data().items():
      yield f'eval/{name}', inputs.as_pipeline(make, training=False)

  def prepare(
    self, model_dir: str | pathlib.Path, *, evaluate: bool = True
  ) -> runs.Run:
    """Builds and checks every part; writes nothing."""
    keras.utils.set_random_seed(self.seed)
    strategy = strategies.make_strategy(self.strategy)
    data = inputs.as_pipeline(self.train_data, training=True)
    data.check_resumable()
    per_epoch = data.steps_per_epoch
    trainer = trainers.Trainer(
      self._make_task(strategy),
      data,
      strategy=strategy,
      steps_per_loop=self.steps_per_loop,
      log_every=self._in_steps('log_every', per_epoch),
      seed=self.seed,
      update=self.update,
    )
    writer = summaries.SummaryWriter(model_dir)
    publish: list[reports.Action] = [
      writer, summaries.MetricsFile(model_dir), progress.Progress()
    ]  # fmt: skip
    early_stop = copy.copy(self.early_stop)  # it has a state of its own
    if early_stop and not evaluate and early_stop.metric.startswith('eval/'):
      early_stop = None
    if early_stop:
      publish.append(early_stop)
    measured = self._evaluators(trainer, strategy, publish) if evaluate else []
    if early_stop:
      self._check_monitored(early_stop.metric, trainer, measured)
    if self.export:
      exports.check_serve(trainer.task, trainer.example_features())
    checkpointer = checkpoints.Checkpointer(
      model_dir, trainer, keep=self.keep, before_commit=writer.flush
    )
    eval_every = self._interval('eval_every', per_epoch)
    save_every = self._interval('checkpoint_every', per_epoch)
    return runs.Run(
      model_dir,
      trainer=trainer,
      last_step=_last_step_of(trainer, self._last_step(per_epoch), data),
      evaluators=measured,
      checkpointer=checkpointer,
      summary_writer=writer,
      actions=[
        *publish,
        *(actions_lib.Every(eval_every, evaluator) for evaluator in measured),
        *(copy.copy(action) for action in self.actions),
      ],
      checkpoint=actions_lib.Every(save_every, checkpointer),
      export=self.export,
      facts={
        'seed': self.seed,
        'strategy': self.strategy,
        'replicas': strategy.num_replicas_in_sync,
      },
    )

  def _make_task(self, strategy: Any) -> tasks.Task:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(self.precision)
    try:
      with strategy.scope():
        task = self.task()
    finally:
      keras.config.set_dtype_policy(before)
    if not isinstance(task, tasks.Task):
      raise errors.TaskError(
        f'Experiment.task made a {type(task).__name__}; let it return a '
        'tftrain.Task'
      )
    return task

  def _check_monitored(
    self,
    metric: str,
    trainer: trainers.Trainer,
    measured: Sequence[evaluators.Evaluator],
  ) -> None:
    known = [f'train/{tag}' for tag in trainer.tags]
    known += [f'eval/{e.name}/{tag}' for e in measured for tag in e.tags]
    if metric not in known:
      raise errors.ConfigError(
        f'early_stop waits for {metric}, which is never '
        f'reported; there are {", ".join(known)}'
      )

  def _evaluators(
    self,
    trainer: trainers.Trainer,
    strategy: Any,
    actions: Sequence[reports.Action],
  ) -> list[evaluators.Evaluator]:
    return [
      evaluators.Evaluator(
        trainer.task,
        make_data(),
        strategy=strategy,
        name=name,
        actions=actions,
        stop=trainer.stop_variable,
      )
      for name, make_data in self._eval_data().items()
    ]

  def _eval_data(self) -> Mapping[str, Callable[[], Any]]:
    if self.eval_data is None:
      return {}
    if isinstance(self.eval_data, Mapping):
      return self.eval_data
    return {'test': self.eval_data}

  def _last_step(self, per_epoch: float | None) -> int:
    if self.steps is not None:
      return self.steps
    assert self.epochs is not None
    if per_epoch is None:
      raise errors.ConfigError(
        'Experiment.epochs needs data whose size is known; give steps instead'
      )
    return max(1, round(self.epochs * per_epoch))

  def _interval(self, name: str, per_epoch: float | None) -> Interval:
    """The interval called `name`, epochs turned into steps."""
    value: Interval = getattr(self, name)
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*epochs?', str(value).strip())
    if not match:
      return value
    if per_epoch is None:
      raise errors.ConfigError(
        f'Experiment.{name} = {value!r} needs data whose size is known; give a '
        'number of steps instead'
      )
    return max(1, round(float(match[1]) * per_epoch))

  def _in_steps(self, name: str, per_epoch: float | None) -> int:
    value = self._interval(name, per_epoch)
    if not isinstance(value, int) or value < 1:
      raise errors.ConfigError(
        f'Experiment.{name} = {value!r} must be a number of steps of at least '
        '1, or epochs'
      )
    return value


def _last_step_of(
  trainer: trainers.Trainer, asked: int, data: inputs.Pipeline
) -> int:
  """Where the run ends; says now if the data ends before that."""
  last = trainer.last_step(asked)
  if last < asked:
    logging.warning(
      'The training data ends at step %d of %d%s; let it repeat (epochs=None), '
      'or ask for fewer steps.',
      last,
      asked,
      f' ({data.num_examples} examples)' if data.num_examples else '',
    )
  return last

"""Learning-rate finder: a short run with a geometrically growing rate."""

from collections.abc import Callable
import csv
import dataclasses
import io
import math
import pathlib
from typing import Any

import keras
import tensorflow as tf

from tftrain import errors
from tftrain.experiment import experiment as experiment_lib
from tftrain.platform import files
from tftrain.task import task as task_lib
from tftrain.train import trainer as trainer_lib

_SMOOTHING = 0.9
_AROUND = 4
_WORSE = 4.0
_SHOWN = 12
_ENDINGS = ('.csv', '.json', '.png')


@dataclasses.dataclass(frozen=True)
class RangeTest:
  """Result of a learning-rate range test.

  Attributes:
    rates: Learning rate of each step.
    losses: Loss of each step, before its update.
    smoothed: Means of the losses around each step.
    suggestion: Rate to begin with; None if the loss never fell.
    ended: Reason for the end of the test.
  """

  rates: tuple[float, ...]
  losses: tuple[float, ...]
  smoothed: tuple[float, ...]
  suggestion: float | None
  ended: str

  def table(self) -> str:
    """Returns a selection of the steps and the suggestion, as text."""
    count = len(self.rates)
    chosen = sorted(
      {round(i * (count - 1) / _SHOWN) for i in range(_SHOWN + 1)}
    )
    lines = [f'{"learning rate":>14} {"loss":>12} {"smoothed":>12}']
    for i in chosen if count else []:
      lines.append(
        f'{self.rates[i]:>14.3g} {self.losses[i]:>12.5g} '
        f'{self.smoothed[i]:>12.5g}'
      )
    lines.append(f'Ended: {self.ended}.')
    if self.suggestion is None:
      lines.append('The loss fell at no rate; look at the model and the data.')
    else:
      lines.append(f'Suggestion: a learning rate of {self.suggestion:.2g}')
    return '\n'.join(lines)


def check_output(path: str) -> None:
  """Checks early that `write` can write `path`.

  Raises:
    ConfigError: If the suffix is unknown, or `.png` is asked for and matplotlib
      is not installed.
  """
  if pathlib.Path(path).suffix not in _ENDINGS:
    raise errors.ConfigError(
      f'--output={path}: give a name that ends in {", ".join(_ENDINGS)}'
    )
  if path.endswith('.png'):
    _figure()


def write(found: RangeTest, path: str) -> None:
  """Writes all steps to `.csv` or `.json`, or a plot of them to `.png`."""
  check_output(path)
  target = pathlib.Path(path)
  with files.convert_os_errors(target):
    if target.suffix == '.png':
      files.write_bytes(target, _plot(found))
    elif target.suffix == '.json':
      files.write_json(target, dataclasses.asdict(found))
    else:
      text = io.StringIO()
      writer = csv.writer(text, lineterminator='\n')
      writer.writerow(['learning_rate', 'loss', 'smoothed'])
      rows = zip(found.rates, found.losses, found.smoothed, strict=True)
      writer.writerows(rows)
      files.write_text(target, text.getvalue())


def of_experiment(experiment: experiment_lib.Experiment) -> RangeTest:
  """Runs the test on an Experiment, and leaves nothing behind.

  A learning-rate schedule is replaced by the constant rate of the test.
  """

  def make_task() -> task_lib.Task:
    task = experiment.task()
    if isinstance(task, task_lib.Task):  # prepare() rejects others
      _without_schedule(task)
    return task

  plain = dataclasses.replace(
    experiment,
    task=make_task,
    export=False,
    early_stop=None,
    best=None,
    actions=(),
  )
  with files.scratch_directory() as directory:
    run = plain.prepare(directory / 'run', evaluate=False, quiet=True)
    return find(run.trainer)


def find(
  trainer: trainer_lib.Trainer,
  *,
  lowest: float = 1e-7,
  highest: float = 10.0,
  steps: int = 100,
) -> RangeTest:
  """Runs the learning-rate range test, and restores the Trainer's state.

  The test of Smith (Cyclical Learning Rates for Training Neural Networks, 2017)
  trains with a geometrically growing rate. It ends early if the loss is not
  finite, or is several times the best loss. The suggestion is the lower of two
  rates that fastai uses: the one at which the smoothed loss falls fastest over
  the logarithm of the rate, and a tenth of the one at its minimum.

  Args:
    trainer: Trainer of a Task with one optimizer and a constant rate.
    lowest: Learning rate of the first step.
    highest: Learning rate of the last step.
    steps: Number of steps, at least 10.

  Raises:
    ConfigError: If not 0 < lowest < highest, if `steps` is below 10, or if the
      Task has several optimizers or a schedule.
  """
  if not 0 < lowest < highest < math.inf or steps < 10:
    raise errors.ConfigError(
      f'lr_find from {lowest} to {highest} in {steps} steps: give 0 < lowest < '
      'highest and at least 10 steps'
    )
  optimizer = _only_optimizer(trainer.task)
  # The learning rate is part of the state.
  before = {k: v.numpy() for k, v in trainer.read_state().items()}
  growth = (highest / lowest) ** (1 / (steps - 1))
  try:
    return _sweep_rates(
      trainer, optimizer, [lowest * growth**i for i in range(steps)]
    )
  finally:
    trainer.write_state({k: tf.constant(v) for k, v in before.items()})


def _only_optimizer(task: task_lib.Task) -> Any:
  if len(task.optimizers) != 1:
    raise errors.ConfigError(
      f'lr_find changes the rate of one optimizer; {type(task).__name__} has '
      f'{len(task.optimizers)}'
    )
  (optimizer,) = task.optimizers.values()
  if _has_schedule(optimizer):
    raise errors.ConfigError(
      f'lr_find sets the learning rate, and that of {type(optimizer).__name__} '
      'is a schedule; give a number for the test'
    )
  return optimizer


def _has_schedule(optimizer: Any) -> bool:
  config = optimizer.get_config()
  return not isinstance(config.get('learning_rate'), int | float)


def _without_schedule(task: task_lib.Task) -> None:
  for name, optimizer in task.optimizers.items():
    if isinstance(optimizer, keras.Optimizer) and _has_schedule(optimizer):
      config = {**optimizer.get_config(), 'learning_rate': 1.0}
      setattr(task, name, type(optimizer).from_config(config))


def _sweep_rates(
  trainer: trainer_lib.Trainer, optimizer: Any, planned: list[float]
) -> RangeTest:
  rates: list[float] = []
  losses: list[float] = []
  trend: list[float] = []
  average, ended = 0.0, f'after {len(planned)} steps'
  for number, rate in enumerate(planned, 1):
    optimizer.learning_rate = rate
    try:
      report = trainer.train(trainer.step + 1)
    except errors.NonFiniteError:
      ended = f'the loss or a gradient was not finite at {rate:.2g}'
      break
    if report is None:
      ended = 'the data ended'
      break
    loss = report.scalars['loss']
    if not math.isfinite(loss):  # loss scaling skipped this step
      ended = f'the loss was not finite at {rate:.2g}'
      break
    average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
    rates.append(rate)
    losses.append(loss)
    trend.append(average / (1 - _SMOOTHING**number))
    if _is_worse(trend):
      ended = f'the loss had risen far at {rate:.2g}'
      break
  smoothed = _centred(losses)
  return RangeTest(
    rates=tuple(rates),
    losses=tuple(losses),
    smoothed=smoothed,
    suggestion=_suggestion(rates, smoothed),
    ended=ended,
  )


def _is_worse(trend: list[float]) -> bool:
  best, first = min(trend), trend[0]
  return trend[-1] - best > (_WORSE - 1) * max(abs(best), abs(first), 1e-12)


def _centred(losses: list[float]) -> tuple[float, ...]:
  """Returns centered moving averages; trailing ones would lag."""
  parts = [
    losses[max(0, i - _AROUND) : i + _AROUND + 1] for i in range(len(losses))
  ]
  return tuple(sum(part) / len(part) for part in parts)


def _suggestion(
  rates: list[float], smoothed: tuple[float, ...]
) -> float | None:
  if len(smoothed) < 3:
    return None
  lowest = smoothed.index(min(smoothed))
  slopes = [smoothed[i + 1] - smoothed[i - 1] for i in range(1, lowest)]
  if not slopes or min(slopes) >= 0:
    return None
  return min(rates[1 + slopes.index(min(slopes))], rates[lowest] / 10)


def _figure() -> Callable[..., Any]:
  """Returns the Figure of matplotlib, which is an optional dependency."""
  try:
    from matplotlib import figure
  except ImportError as error:
    raise errors.ConfigError(
      "a plot needs matplotlib: pip install 'tftrain[figures]', or give "
      '--output a name that ends in .csv'
    ) from error
  made: Callable[..., Any] = figure.Figure
  return made


def _plot(found: RangeTest) -> bytes:
  drawn = _figure()(figsize=(6, 4))
  axes = drawn.subplots()
  axes.plot(found.rates, found.losses, color='lightgray', label='loss')
  axes.plot(found.rates, found.smoothed, label='smoothed')
  if found.suggestion is not None:
    label = f'suggestion {found.suggestion:.2g}'
    axes.axvline(found.suggestion, linestyle='--', color='black', label=label)
  axes.set_xscale('log')
  axes.set_xlabel('learning rate')
  axes.set_ylabel('loss')
  axes.legend()
  content = io.BytesIO()
  drawn.savefig(content, format='png')
  return content.getvalue()

"""Checks of a user's Task, for use in unit tests.

The checks raise AssertionError. Several replicas need several devices, which
conftest.py must create before any other use of TensorFlow:

  tftrain.distribute.set_local_devices(4)
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import dataset_pipeline
from tftrain.distribute import replica_batch
from tftrain.distribute import strategy as strategy_lib
from tftrain.interop import tracking
from tftrain.step import update_options
from tftrain.task import task as task_lib
from tftrain.train import feed as feed_lib
from tftrain.train import trainer as trainer_lib


def assert_learns(
  task: Callable[[], task_lib.Task],
  data: Any,
  *,
  update: update_options.Update | None = None,
  steps: int = 100,
  factor: float = 0.5,
  metric: str = 'loss',
) -> tuple[float, float]:
  """Checks that the loss falls in training that repeats one batch.

  A Task that cannot overfit a single batch has a defect.

  Args:
    task: Factory of the Task.
    data: Training data as for a Trainer; only the first batch is used.
    update: Options of the training step; None means plain gradient descent.
    steps: Number of steps.
    factor: Fraction of the first loss below which the last loss must be. A
      negative loss must fall as far as its absolute value would.
    metric: Tag of the metric that must fall, by default `loss`.

  Returns:
    The first and the last value of `metric`.

  Raises:
    AssertionError: If the last value of `metric` is not below the bound.
    ConfigError: If no metric is called `metric`.
  """
  keras.utils.set_random_seed(0)
  batch = _batches(data)[:1]
  trainer = trainer_lib.Trainer(task(), batch, update=update, log_every=1)
  reports = [report.scalars for report in trainer.steps(steps)]
  curve = [scalars[metric] for scalars in reports if metric in scalars]
  if not curve:
    raise errors.ConfigError(
      f'assert_learns: metric {metric!r} was not reported; choose one of '
      + ', '.join(trainer.tags)
    )
  first, last = curve[0], curve[-1]
  bound = first - (1 - factor) * abs(first)
  if not last < bound:
    advice = 'Try another learning rate; look at the loss and the labels'
    silent = errors.listing(trainer.task.step_runner.without_gradient())
    if silent:
      advice = f'The gradient of {silent} is zero'
    raise AssertionError(
      f'{metric} went from {first:g} to {last:g} in {steps} steps on one batch;'
      f' it should end below {bound:g}. {advice}'
    )
  return first, last


def assert_replica_invariant(
  task: Callable[[], task_lib.Task],
  data: Any,
  *,
  update: update_options.Update | None = None,
  replicas: Sequence[int] = (1, 2, 4),
  accumulate: Sequence[int] = (1, 2, 4),
  tolerance: float | None = None,
) -> list[str]:
  """Checks that a step depends on neither replicas nor micro-batches.

  A step on one global batch must give the same metrics and weights for every
  number of replicas and micro-batches. So must a step on the same batch without
  its last row, which is split unevenly. Each optimizer's rule is replaced by
  plain gradient descent at rate 1, and the loss is not scaled, so that the
  gradient itself is compared: Adam would amplify rounding errors.

  Args:
    task: Factory of the Task.
    data: Training data as for a Trainer; only the first batch is used.
    update: Options of the training step; None means plain gradient descent.
    replicas: Numbers of replicas to try; numbers above that of the devices are
      left out.
    accumulate: Numbers of micro-batches to try, on one replica.
    tolerance: Largest difference, relative to the largest entry if that is
      above 1. None means 1e-6; with batch normalization 1e-4, with layers that
      compute in float16 2e-3, in bfloat16 1e-2.

  Returns:
    The limits of the check, a line each: missing devices, dropout that is
    switched off, weights that do not move, uneven parts that the Task rejects,
    a larger tolerance, batch normalization under accumulation.

  Raises:
    AssertionError: If a value differs; the message names the value, the
      difference and a likely cause. Also if the step moves no weight, so that
      there is nothing to compare.
    StrategyError: If `replicas` needs several devices and only one exists.
  """
  # Overflow of a scaled loss depends on the split.
  options = dataclasses.replace(
    update or update_options.Update(), loss_scale=None
  )
  whole = dataclasses.replace(options, accumulate=1)
  usable, lines = _usable(replicas)
  reference = _Trial(task, _batches(data), whole)
  lines += reference.left_out()
  if tolerance is None:
    tolerance = _EPS[reference.coarsest]
  replica = whole if reference.norms else options
  cuts = [(count, replica, f'{count} replicas') for count in usable]
  for parts in accumulate:
    if parts > 1 and not reference.norms:
      cut = dataclasses.replace(options, accumulate=parts)
      cuts.append((1, cut, f'accumulate={parts}'))
  for count, cut, what in cuts:
    trial = _Trial(task, reference.batches, cut, count, reference.start)
    reference.compare(what, trial, tolerance)
  return lines


# Synchronized variances are differences of squares, which lose digits.
_EPS = {'float32': 1e-6, 'variances': 1e-4, 'float16': 2e-3, 'bfloat16': 1e-2}


class _Trial:
  """A step of a Task on each of several batches, from the same weights."""

  def __init__(
    self,
    make_task: Callable[[], task_lib.Task],
    batches: list[Any],
    options: update_options.Update,
    replicas: int = 1,
    start: Mapping[str, np.ndarray] | None = None,
  ):
    keras.utils.set_random_seed(0)
    name = 'mirrored' if replicas > 1 else 'one_device'
    strategy = strategy_lib.make_strategy(name, replicas=replicas)
    with strategy.scope():
      task = make_task()
      for optimizer in task.optimizers.values():
        _descend_plainly(optimizer)
    # One Trainer for all batches: tracing takes most of the time.
    trainer = trainer_lib.Trainer(
      task, batches, strategy=strategy, update=options, log_every=1
    )
    self._prepare(task)
    self.options = options
    self.start = start or _arrays(task)  # the state before each step
    self.steps: list[dict[str, Any]] = []  # scalars and state after each
    self.batches: list[Any] = []  # the batches that the Task accepts
    parts = replicas * options.accumulate
    for number, batch in enumerate(batches, start=1):
      if number > 1 and replica_batch.batch_size(batch) < parts:
        break  # one part would be empty
      with strategy.scope():
        task.write_state(self.start)
        try:
          [report] = trainer.steps(number)
        except errors.InputError:
          if start or number == 1:
            raise
          break  # the Task needs pairs, for example
        self.batches.append(batch)
        self.steps.append({**report.scalars, **_arrays(task)})
    first, start = self.steps[0], self.start
    self.moved = {name for name in start if np.any(start[name] != first[name])}

  def _prepare(self, task: task_lib.Task) -> None:
    """Switches noise off, after lazy layers are built and before tracing."""
    owned = tracking.owned_by(task)
    names = {id(variable): name for name, variable in owned.variables.items()}
    self.trainable = list(owned.trainable)
    self.drawers = {names[id(seed.state)]: 'the Task' for seed in owned.seeds}
    self.switched_off: list[str] = []
    norms = []
    rounded = {'float32'}
    for name, layer in owned.sublayers.items():
      rounded.add(layer.compute_dtype)
      if isinstance(layer, keras.layers.BatchNormalization):
        norms.append(name)
        rounded.add('variances')
      for seed in layer._seed_generators:
        self.drawers[names[id(seed.state)]] = name
        if _switch_off(layer):
          self.switched_off.append(name)
    self.norms = errors.listing(norms)
    self.coarsest = max(rounded & {*_EPS}, key=_EPS.__getitem__)

  def left_out(self) -> list[str]:
    """Returns the limits of a comparison with this trial, a line each.

    Raises:
      AssertionError: If the step moves no weight.
    """
    still = [name for name in self.trainable if name not in self.moved]
    if still == self.trainable:
      raise AssertionError(
        'the step moved no weight: is its gradient zero, or `when=` False?'
      )
    lines = [f'dropout: {name} is switched off' for name in self.switched_off]
    if still:
      lines.append(f'weights: {errors.listing(still)} did not move')
    if len(self.batches) == 1:
      lines.append('uneven parts: no batch of one row less can be taken')
    if self.coarsest != 'float32':
      lines.append(f'tolerance: rounding of {self.coarsest}')
    if self.norms:
      lines.append(f'accumulate: {self.norms} would see micro-batches')
    return lines

  def compare(self, what: str, trial: '_Trial', tolerance: float) -> None:
    """Compares metrics of the forward pass first, then the updated state.

    Raises:
      AssertionError: If a value of `trial` differs by more than `tolerance`.
    """
    passed_over = {'update_ratio', *self.drawers}
    for step, other in zip(self.steps, trial.steps, strict=False):
      for name in [n for n in step if n not in passed_over]:
        allowed = tolerance * np.max(np.abs(step[name]), initial=1.0)
        difference = np.subtract(other[name], step[name])
        apart = np.max(np.abs(difference), initial=0.0)
        if not apart <= allowed:
          raise AssertionError(
            f'{what}: {name} differs by {apart:.2g} from one replica and one '
            f'pass; rounding of {self.coarsest} allows {allowed:.2g}. '
            + self._advice(name)
          )
      what += ', one row less'

  def _advice(self, name: str) -> str:
    draw = [who for x, who in self.drawers.items() if x in self.moved]
    draw = [who for who in draw if who not in self.switched_off]
    if draw:
      return f'{errors.listing(draw)} draws random numbers: test without that'
    if self.norms and not self.options.sync_batch_norm:
      return f'Leave Update.sync_batch_norm on, for {self.norms}'
    if name in self.start or name.endswith('gradient_norm'):
      return (
        'The forward pass is the same, its gradient is not: does the step '
        'assign weights, or draw random numbers?'
      )
    return (
      f'The forward pass depends on how the batch is cut: return {name} for '
      'each example, [batch], not averaged; let no layer mix examples'
    )


def _usable(replicas: Sequence[int]) -> tuple[list[int], list[str]]:
  """Returns (usable counts above 1, a line for each count left out)."""
  devices = strategy_lib.count_devices()
  usable = [count for count in replicas if 1 < count <= devices]
  if not usable and any(count > 1 for count in replicas):
    raise errors.StrategyError(
      f'replicas = {list(replicas)} needs several devices, and there is '
      f'{devices}; call tftrain.distribute.set_local_devices(4) first'
    )
  missing = [count for count in replicas if count > devices]
  return usable, [f'{n} replicas: only {devices} devices' for n in missing]


def _descend_plainly(optimizer: Any) -> None:
  """Replaces the rule of an optimizer by gradient descent at rate 1."""
  optimizer.update_step = lambda gradient, variable, rate: optimizer.assign_sub(
    variable, gradient
  )


def _switch_off(layer: Any) -> bool:
  """Sets the noise rates of a layer to 0; returns False if it has none > 0."""
  rate = vars(layer).get
  names = ('rate', 'stddev', 'dropout', 'recurrent_dropout')
  found = [n for n in names if isinstance(rate(n), float) and rate(n) > 0]
  for name in found:
    setattr(layer, name, 0.0)
  return bool(found)


def _batches(data: Any) -> list[Any]:
  """Returns the first training batch, and the same without its last row."""
  pipeline = dataset_pipeline.as_pipeline(data, training=True)
  batch = feed_lib.Feed(pipeline, seed=0).first_batch()
  whole = tf.nest.map_structure(lambda leaf: leaf.numpy(), batch)
  less = tf.nest.map_structure(lambda leaf: leaf[:-1], whole)
  return [whole, less] if replica_batch.batch_size(less) else [whole]


def _arrays(task: task_lib.Task) -> dict[str, np.ndarray]:
  return {name: value.numpy() for name, value in task.read_state().items()}

"""Checks to run on a Task of your own, in your own tests.

They raise AssertionError. Several replicas need several devices; before
anything else of TensorFlow is used, in conftest.py say:

  tftrain.strategies.set_local_devices(4)
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
from tftrain import groups
from tftrain import inputs
from tftrain import loops
from tftrain import strategies
from tftrain import tasks
from tftrain import trainers
from tftrain import updates
from tftrain import variables


def assert_learns(
  task: Callable[[], tasks.Task],
  data: Any,
  *,
  update: updates.Update | None = None,
  steps: int = 100,
  factor: float = 0.5,
  metric: str = 'loss',
) -> tuple[float, float]:
  """Trains on the first batch alone, again and again: the loss has to fall.

  What cannot learn one batch by heart has a mistake in it.

  Args:
    task: Makes the Task.
    data: What a Trainer takes; its first batch is used.
    update: How the batch becomes new weights.
    steps: How many steps to take.
    factor: The last loss must be below this part of the first.
    metric: What has to fall, where that is not `loss`.

  Returns:
    The first and the last loss.

  Raises:
    AssertionError: It did not fall that far.
  """
  keras.utils.set_random_seed(0)
  trainer = trainers.Trainer(
    task(), [_first_batch(data)], update=update, log_every=1
  )
  curve = [report.scalars[metric] for report in trainer.steps(steps)]
  first, last = curve[0], curve[-1]
  if not last < factor * first:
    silent = groups.some(trainer.task.engine.without_gradient())
    raise AssertionError(
      f'{metric} went from {first:g} to {last:g} in {steps} steps on one batch;'
      f' it should end below {factor * first:g}. '
      + (
        f'The gradient of {silent} is zero'
        if silent
        else 'Try another learning rate; look at the loss and the labels'
      )
    )
  return first, last


def assert_replica_invariant(
  task: Callable[[], tasks.Task],
  data: Any,
  *,
  update: updates.Update | None = None,
  replicas: Sequence[int] = (1, 2, 4),
  accumulate: Sequence[int] = (1, 2, 4),
  tolerance: float = 1e-6,
) -> list[str]:
  """One step on one global batch, cut in different ways, must come out alike.

  The rule of each optimizer is replaced by plain gradient descent at rate 1, so
  that what is compared is the gradient: Adam would blow up rounding errors.

  Args:
    task: Makes the Task.
    data: What a Trainer takes; its first batch is used.
    update: How the batch becomes new weights.
    replicas: Numbers of replicas to try, as far as there are devices.
    accumulate: Numbers of micro-batches to try, on one replica.
    tolerance: Largest difference, relative to the largest entry if that is
      above 1.

  Returns:
    What was left out, a line each: dropout that was switched off, devices that
    there are not, batch normalization under accumulation.

  Raises:
    AssertionError: Something differs; it says what, by how much, and where to
      look.
    StrategyError: There are not even two devices.
  """
  options = update or updates.Update()
  batch = _first_batch(data)
  usable, exceptions = _usable(replicas)
  reference = _Trial(task, batch, dataclasses.replace(options, accumulate=1), 1)
  exceptions += reference.switched_off
  for count in usable:
    trial = _Trial(task, batch, options, count, reference.before)
    _compare(f'{count} replicas', trial, reference, tolerance)
  if reference.batch_norms:
    exceptions.append(
      'accumulate: batch normalization sees micro-batches '
      f'({groups.some(reference.batch_norms)})'
    )
    return exceptions
  for parts in accumulate:
    cut = dataclasses.replace(options, accumulate=parts)
    trial = _Trial(task, batch, cut, 1, reference.before)
    _compare(f'accumulate={parts}', trial, reference, tolerance)
  return exceptions


class _Trial:
  """One step of a Task.

  Attributes:
    before: The state before it.
    after: The state after it.
    scalars: What it reported.
    batch_norms: The names of its batch normalization layers.
    switched_off: The dropout layers that were switched off, a line each.
  """

  def __init__(
    self,
    make_task: Callable[[], tasks.Task],
    batch: Any,
    options: updates.Update,
    replicas: int,
    start: Mapping[str, Any] | None = None,
  ):
    keras.utils.set_random_seed(0)
    strategy = strategies.make_strategy('one_device')
    if replicas > 1:
      strategy = strategies.make_strategy('mirrored', replicas=replicas)
    with strategy.scope():
      task = make_task()
      for optimizer in task.optimizers.values():
        _descend_plainly(optimizer)
    layers = variables.owned_by(task).sublayers
    self.switched_off = [
      f'dropout: {name} is switched off' for name in _switch_off(layers)
    ]
    self.batch_norms = [
      name
      for name, layer in layers.items()
      if isinstance(layer, keras.layers.BatchNormalization)
    ]
    trainer = trainers.Trainer(
      task, [batch], strategy=strategy, update=options, log_every=1
    )
    if start is not None:
      trainer.write_state(start)
    self.before = _arrays(trainer)
    report = trainer.train(1)
    assert report is not None
    self.after = _arrays(trainer)
    self.scalars = dict(report.scalars)


def _usable(replicas: Sequence[int]) -> tuple[list[int], list[str]]:
  """Those above 1 for which there are devices; a line for each other."""
  devices = strategies.count_devices()
  usable = [count for count in replicas if 1 < count <= devices]
  if not usable and any(count > 1 for count in replicas):
    raise errors.StrategyError(
      f'replicas = {list(replicas)} needs several devices, and there is '
      f'{devices}; call tftrain.strategies.set_local_devices(4) first'
    )
  return usable, [
    f'{count} replicas: there are only {devices} devices'
    for count in replicas
    if count > devices
  ]


def _compare(
  what: str, trial: _Trial, reference: _Trial, tolerance: float
) -> None:
  """Looks at the forward pass first, then at what follows from it."""
  scalars = {
    name: (value, reference.scalars[name])
    for name, value in trial.scalars.items()
    if name != 'update_ratio'
  }
  weights = {
    name: (value, reference.after[name])
    for name, value in trial.after.items()
    if not name.startswith('trainer/')
  }
  pairs: dict[str, tuple[Any, Any]] = {**scalars, **weights}
  for name, (ours, theirs) in pairs.items():
    largest = max(1.0, float(np.max(np.abs(theirs), initial=0.0)))
    apart = float(np.max(np.abs(np.subtract(ours, theirs)), initial=0.0))
    if not apart <= tolerance * largest:
      raise AssertionError(
        f'{what}: {name} differs by {apart:.2g} from one replica and one pass. '
        + _advice(name, name in scalars, trial)
      )


def _advice(name: str, in_forward_pass: bool, trial: _Trial) -> str:
  norms = groups.some(trial.batch_norms)
  if norms:
    return (
      f'Batch normalization ({norms}) must see the whole batch: leave '
      'Update.sync_batch_norm on'
    )
  if name.endswith('gradient_norm') or not in_forward_pass:
    return (
      'The forward pass is the same, its gradient is not: does the step assign '
      'weights, or draw random numbers?'
    )
  return (
    f'The forward pass depends on how the batch is cut: return {name} for each '
    'example, [batch], not averaged; let no layer mix examples'
  )


def _descend_plainly(optimizer: Any) -> None:
  """Replaces the rule of an optimizer by gradient descent at rate 1."""

  def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
    del learning_rate
    optimizer.assign_sub(variable, gradient)

  optimizer.update_step = update_step


def _switch_off(layers: Mapping[str, Any]) -> list[str]:
  """Sets the rate of dropout layers to 0; their names."""
  found = [
    name
    for name, layer in layers.items()
    if isinstance(getattr(layer, 'rate', None), float)
    and layer._seed_generators
  ]
  for name in found:
    layers[name].rate = 0.0
  return found


def _arrays(trainer: trainers.Trainer) -> dict[str, np.ndarray]:
  return {name: value.numpy() for name, value in trainer.read_state().items()}


def _first_batch(data: Any) -> Any:
  """The first global batch of anything that a Trainer takes."""
  pipeline = inputs.as_pipeline(data, training=True)
  batch = loops.Feed(pipeline, seed=0).first_batch()
  return tf.nest.map_structure(lambda leaf: leaf.numpy(), batch)

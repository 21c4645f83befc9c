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
    factor: The last loss must be below this part of the first; where that is
      negative, it must have fallen as far as if it were not.
    metric: What has to fall, where that is not `loss`.

  Returns:
    The first and the last loss.

  Raises:
    AssertionError: It did not fall that far.
    ConfigError: No metric is called `metric`.
  """
  keras.utils.set_random_seed(0)
  trainer = trainers.Trainer(
    task(), _batches(data)[:1], update=update, log_every=1
  )
  reports = [report.scalars for report in trainer.steps(steps)]
  curve = [scalars[metric] for scalars in reports if metric in scalars]
  if not curve:
    raise errors.ConfigError(
      f'assert_learns: metric {metric!r} was not reported in {steps} steps; '
      f'there are {", ".join(trainer.tags)}'
    )
  first, last = curve[0], curve[-1]
  bound = first - (1 - factor) * abs(first)
  if not last < bound:
    advice = 'Try another learning rate; look at the loss and the labels'
    silent = groups.some(trainer.task.engine.without_gradient())
    if silent:
      advice = f'The gradient of {silent} is zero'
    raise AssertionError(
      f'{metric} went from {first:g} to {last:g} in {steps} steps on one batch;'
      f' it should end below {bound:g}. {advice}'
    )
  return first, last


def assert_replica_invariant(
  task: Callable[[], tasks.Task],
  data: Any,
  *,
  update: updates.Update | None = None,
  replicas: Sequence[int] = (1, 2, 4),
  accumulate: Sequence[int] = (1, 2, 4),
  tolerance: float | None = None,
) -> list[str]:
  """One step on one global batch, cut in different ways, must come out alike.

  And so must one on that batch less its last row, whose parts are uneven. The
  rule of each optimizer is replaced by plain gradient descent at rate 1, and no
  loss is scaled, so that what is compared is the gradient: Adam would blow up
  rounding errors.

  Args:
    task: Makes the Task.
    data: What a Trainer takes; its first batch is used.
    update: How the batch becomes new weights.
    replicas: Numbers of replicas to try, as far as there are devices.
    accumulate: Numbers of micro-batches to try, on one replica.
    tolerance: Largest difference, relative to the largest entry if that is
      above 1. None means 1e-6; 2e-3 where a layer computes in float16, 1e-2 in
      bfloat16.

  Returns:
    What was left out or eased, a line each: dropout that was switched off,
    weights that did not move, devices that there are not, batch normalization
    under accumulation, the tolerance of half precision.

  Raises:
    AssertionError: Something differs; it says what, by how much, and where to
      look. Or no weight moved, so that there is nothing to compare.
    StrategyError: There are not even two devices.
  """
  # Whether a scaled loss overflows depends on the cut.
  options = dataclasses.replace(update or updates.Update(), loss_scale=None)
  whole = dataclasses.replace(options, accumulate=1)
  usable, lines = _usable(replicas)
  reference = _Trial(task, _batches(data), whole)
  lines += reference.left_out()
  norms = reference.batch_norms
  cuts = [(n, whole if norms else options, f'{n} replicas') for n in usable]
  for parts in accumulate:
    if parts > 1 and not norms:
      cut = dataclasses.replace(options, accumulate=parts)
      cuts.append((1, cut, f'accumulate={parts}'))
  for count, cut, what in cuts:
    trial = _Trial(task, reference.batches, cut, count, reference.start)
    _compare(what, trial, reference, tolerance)
  return lines


# How far off half precision may be, the coarsest first.
_ROUNDING = {'bfloat16': 1e-2, 'float16': 2e-3, 'float32': 1e-6}


class _Trial:
  """A step of a Task on each of some batches, all from the same weights.

  Attributes:
    batches: Those that it took.
    start: The state before each step.
    steps: What each reported, and the state after it.
  """

  def __init__(
    self,
    make_task: Callable[[], tasks.Task],
    batches: Sequence[Any],
    options: updates.Update,
    replicas: int = 1,
    start: Mapping[str, np.ndarray] | None = None,
  ):
    keras.utils.set_random_seed(0)
    strategy = strategies.make_strategy('one_device')
    if replicas > 1:
      strategy = strategies.make_strategy('mirrored', replicas=replicas)
    with strategy.scope():
      task = make_task()
      for optimizer in task.optimizers.values():
        _descend_plainly(optimizer)
    # One for all batches: what takes time is tracing.
    trainer = trainers.Trainer(
      task, batches, strategy=strategy, update=options, log_every=1
    )
    self.options = options
    self.owned = variables.owned_by(task)
    # By now lazily built layers are there, and nothing is traced yet.
    self._switched_off = _switch_off(self.owned.sublayers)
    self.start = start or _arrays(task)
    self.batches: list[Any] = []
    self.steps: list[dict[str, Any]] = []
    for batch in batches:
      if self.batches and _rows(batch) < replicas * options.accumulate:
        break  # some part would have no row
      with strategy.scope():
        task.write_state(self.start)
      try:
        report = trainer.train(len(self.batches) + 1)
      except errors.InputError:
        if start or not self.batches:
          raise
        break  # the Task wants pairs, say
      assert report is not None
      self.batches.append(batch)
      self.steps.append({**report.scalars, **_arrays(task)})

  @property
  def batch_norms(self) -> list[str]:
    return [
      name
      for name, layer in self.owned.sublayers.items()
      if isinstance(layer, keras.layers.BatchNormalization)
    ]

  @property
  def precision(self) -> str:
    """The coarsest in which a layer computes."""
    used = {layer.compute_dtype for layer in self.owned.sublayers.values()}
    return next((d for d in _ROUNDING if d in used), 'float32')

  def moved(self, name: str) -> bool:
    """Whether the first step changed a part of the state."""
    return not np.array_equal(self.start[name], self.steps[0][name])

  def random(self) -> dict[str, str]:
    """The state of each seed generator -> the layer that draws from it."""
    names = {id(v): name for name, v in self.owned.variables.items()}
    found = {names[id(g.state)]: names[id(g.state)] for g in self.owned.seeds}
    for layer_name, layer in self.owned.sublayers.items():
      for generator in layer._seed_generators:
        found[names[id(generator.state)]] = layer_name
    return found

  def left_out(self) -> list[str]:
    """What a comparison with it does not see, or sees less of; a line each."""
    trainable = list(self.owned.trainable)
    still = [name for name in trainable if not self.moved(name)]
    if still == trainable:
      raise AssertionError(
        'the step moved no weight, so there is nothing to compare: is its '
        'gradient zero, or its `when=` False at step 1?'
      )
    norms = groups.some(self.batch_norms)
    lines = [f'dropout: {name} is switched off' for name in self._switched_off]
    if still:
      lines.append(f'weights: {groups.some(still)} did not move')
    if len(self.batches) == 1:
      lines.append('uneven parts: the Task cannot take one row less')
    if self.precision != 'float32':
      lines.append(f'tolerance: rounding of {self.precision}')
    if norms:
      what = 'accumulate: batch normalization sees micro-batches'
      lines.append(f'{what} ({norms})')
    return lines


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
  what: str, trial: _Trial, reference: _Trial, tolerance: float | None
) -> None:
  """Looks at the forward pass first, then at what follows from it."""
  if tolerance is None:
    tolerance = _ROUNDING[reference.precision]
  passed_over = {'update_ratio', *reference.random()}
  for ours, theirs in zip(trial.steps, reference.steps, strict=False):
    for name in [n for n in ours if n not in passed_over]:
      allowed = tolerance * max(1.0, _largest(theirs[name]))
      apart = _largest(np.subtract(ours[name], theirs[name]))
      if not apart <= allowed:
        raise AssertionError(
          f'{what}: {name} differs by {apart:.2g} from one replica and one pass'
          f'; rounding of {reference.precision} allows {allowed:.2g}. '
          + _advice(name, trial, reference)
        )
    what += ', one row less'


def _advice(name: str, trial: _Trial, reference: _Trial) -> str:
  drawn = [
    k for state, k in reference.random().items() if reference.moved(state)
  ]
  if drawn:
    return (
      f'Random numbers ({groups.some(drawn)}) are others for each cut: check '
      'the Task without them'
    )
  if trial.batch_norms and not trial.options.sync_batch_norm:
    return (
      f'Batch normalization ({groups.some(trial.batch_norms)}) must see the '
      'whole batch: leave Update.sync_batch_norm on'
    )
  if name in trial.start or name.endswith('gradient_norm'):
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
  """Sets dropout and noise to 0; the names of the layers."""
  found = {}
  for name, layer in layers.items():
    for rate in ('rate', 'stddev', 'dropout', 'recurrent_dropout'):
      # Without a generator of its own a `rate` may be anything.
      if layer._seed_generators and isinstance(vars(layer).get(rate), float):
        setattr(layer, rate, 0.0)
        found[name] = rate
  return list(found)


def _batches(data: Any) -> list[Any]:
  """The first of what a Trainer takes, and the same without its last row."""
  pipeline = inputs.as_pipeline(data, training=True)
  batch = loops.Feed(pipeline, seed=0).first_batch()
  whole = tf.nest.map_structure(lambda leaf: leaf.numpy(), batch)
  less = tf.nest.map_structure(lambda leaf: leaf[:-1], whole)
  return [whole, less] if _rows(less) else [whole]


def _rows(batch: Any) -> int:
  return len(tf.nest.flatten(batch)[0])


def _largest(values: Any) -> float:
  return float(np.max(np.abs(values), initial=0.0))


def _arrays(task: tasks.Task) -> dict[str, np.ndarray]:
  return {name: value.numpy() for name, value in task.read_state().items()}

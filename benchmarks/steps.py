"""Benchmark of a training step: tftrain and other ways to write the loop.

  python benchmarks/steps.py --model=mlp

All contestants train the same model on the same digits in one process, taking
turns, so that a busy machine slows all of them; compare the ratios.
docs/benchmarks.md describes the contestants and the timing.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import gc
import io
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import keras
import numpy as np
from sklearn import datasets
import tensorflow as tf

import tftrain

try:
  import orbit
except ImportError:
  orbit = None

_MODEL = flags.DEFINE_enum('model', 'mlp', ['mlp', 'convnet'], 'What to train.')
_STEPS = flags.DEFINE_integer(
  'steps', None, 'Steps in a timed window; a multiple of 100.', lower_bound=100
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 7, 'How often each contestant is timed.', lower_bound=1
)
_WARM_UP = flags.DEFINE_integer(
  'warm_up', 300, 'Steps before the first round.', lower_bound=100
)
_SHARED_INPUT = flags.DEFINE_bool(
  'shared_input', True, "Whether tftrain also runs on the others' tf.data."
)
_ONLY = flags.DEFINE_list(
  'only', None, 'Contestants to run besides tftrain; default: all.'
)
_JSON = flags.DEFINE_string('json', None, 'File for every number measured.')

flags.register_validator(
  'steps', lambda steps: not (steps or 0) % BLOCK, 'not a multiple of 100'
)
flags.register_validator(
  'warm_up', lambda steps: not steps % BLOCK, 'not a multiple of 100'
)

# Steps between two readings of the metrics; also the steps per call of a
# contestant with an inner loop.
BLOCK = 100

# A step beyond the last round.
NEVER = 10**9

TFTRAIN = 'tftrain'
SAME_INPUT = 'tftrain (same input)'
ORBIT_HINT = (
  'Orbit is not installed; to include it: '
  'pip install --no-deps tf-models-official==2.20.0 tf-keras==2.21.0'
)

Scalars = Mapping[str, float]
Contestant = Callable[[int], Scalars]
"""Takes the given number of steps; returns the means of the last 100."""


@dataclasses.dataclass(frozen=True)
class Workload:
  """A model, its data and its number of steps."""

  title: str
  layers: Callable[[], list[keras.Layer]]
  shape: tuple[int, ...]
  batch_size: int
  steps: int

  def make_model(self) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(self.shape), *self.layers()])

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns all 1,797 digits, `[examples, *shape]` in [0, 1], and labels."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype('float32').reshape((-1, *self.shape))
    return images, labels.astype('int64')

  def dataset(self) -> tf.data.Dataset:
    """Returns the usual tf.data input, for all contestants but tftrain."""
    images, labels = self.arrays()
    return (
      tf.data.Dataset.from_tensor_slices((images, labels))
      .shuffle(len(labels))
      .repeat()
      .batch(self.batch_size)
      .prefetch(tf.data.AUTOTUNE)
    )


def mlp_layers() -> list[keras.Layer]:
  return [
    keras.layers.Dense(64, activation='relu'),
    keras.layers.Dense(10),
  ]


def convnet_layers() -> list[keras.Layer]:
  return [
    keras.layers.Conv2D(16, 3, activation='relu'),
    keras.layers.Conv2D(32, 3, activation='relu'),
    keras.layers.Flatten(),
    keras.layers.Dense(10),
  ]


WORKLOADS = {
  'mlp': Workload('mlp 64-64-10', mlp_layers, (64,), 32, 2000),
  'convnet': Workload('convnet 16-32-10', convnet_layers, (8, 8, 1), 64, 500),
}


def make_optimizer() -> keras.Optimizer:
  return keras.optimizers.Adam(1e-3)


def make_loss() -> keras.Loss:
  return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# tftrain.


def tftrain_arrays(workload: Workload, directory: pathlib.Path) -> Contestant:
  data = tftrain.Arrays(workload.arrays(), workload.batch_size)
  return _tftrain(workload, directory / 'arrays', data)


def tftrain_same_input(
  workload: Workload, directory: pathlib.Path
) -> Contestant:
  data = tftrain.data.DatasetPipeline(workload.dataset())
  return _tftrain(workload, directory / 'batches', data)


def _tftrain(
  workload: Workload, directory: pathlib.Path, data: tftrain.data.Pipeline
) -> Contestant:
  """Returns a full run: summaries, metrics file, evaluation, checkpoints."""
  task = tftrain.SupervisedTask(
    workload.make_model(),
    loss=make_loss(),
    optimizer=make_optimizer(),
    metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
  )
  trainer = tftrain.Trainer(task, data, steps_per_loop=BLOCK, log_every=BLOCK)
  writer = tftrain.summary.SummaryWriter(directory)
  publish = [writer, tftrain.summary.MetricsFile(directory)]
  test_data = tftrain.Arrays(workload.arrays(), 100, training=False)
  evaluator = tftrain.Evaluator(
    task, test_data, actions=publish, stop=trainer.stop_variable
  )
  checkpointer = tftrain.Checkpointer(
    directory, trainer, before_commit=writer.flush
  )
  actions = [
    *publish,
    tftrain.Every(NEVER, evaluator),
    tftrain.Every(NEVER, checkpointer),
  ]
  # One run that does not end: `train(n)` per round would evaluate and save at
  # the end of each round, which no other contestant does.
  reports = trainer.steps(NEVER, actions)

  def run(steps: int) -> Scalars:
    for _ in range(steps // BLOCK):  # a Report comes every BLOCK steps
      report = next(reports)
    return report.scalars

  return run


# Hand-written loops.
class HandStep:
  """The training step that `hand`, `call` and `orbit` share."""

  def __init__(self, workload: Workload):
    self.model = workload.make_model()
    self.optimizer = make_optimizer()
    self.optimizer.build(self.model.trainable_variables)
    self._loss = make_loss()
    self._metrics = {
      'loss': keras.metrics.Mean(),
      'accuracy': keras.metrics.SparseCategoricalAccuracy(),
    }

  def take(self, batch: tuple[tf.Tensor, tf.Tensor]) -> None:
    """Trains on one batch."""
    images, labels = batch
    with tf.GradientTape() as tape:
      logits = self.model(images, training=True)
      loss = self._loss(labels, logits)
    variables = self.model.trainable_variables
    gradients = tape.gradient(loss, variables)
    self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
    self._metrics['loss'].update_state(loss)
    self._metrics['accuracy'].update_state(labels, logits)

  def results(self) -> dict[str, tf.Tensor]:
    return {name: metric.result() for name, metric in self._metrics.items()}

  def reset(self) -> None:
    for metric in self._metrics.values():
      metric.reset_state()

  def read(self) -> Scalars:
    scalars = {name: float(value) for name, value in self.results().items()}
    self.reset()
    return scalars


def hand(workload: Workload, directory: pathlib.Path) -> Contestant:
  """Runs the loop in the graph."""
  del directory
  step = HandStep(workload)
  iterator = iter(workload.dataset())

  @tf.function
  def loop(iterator: Any, n: tf.Tensor) -> None:
    for _ in tf.range(n):
      step.take(next(iterator))

  n = tf.constant(BLOCK)

  def run(steps: int) -> Scalars:
    for _ in range(steps // BLOCK):
      loop(iterator, n)
      scalars = step.read()
    return scalars

  return run


def call(workload: Workload, directory: pathlib.Path) -> Contestant:
  """Calls a tf.function once per step."""
  del directory
  step = HandStep(workload)
  iterator = iter(workload.dataset())

  @tf.function
  def one_step(iterator: Any) -> None:
    step.take(next(iterator))

  def run(steps: int) -> Scalars:
    for _ in range(steps // BLOCK):
      for _ in range(BLOCK):
        one_step(iterator)
      scalars = step.read()
    return scalars

  return run


# Keras.


def fit(workload: Workload, directory: pathlib.Path) -> Contestant:
  del directory
  return _fit(workload, steps_per_execution=1)


def fit_100(workload: Workload, directory: pathlib.Path) -> Contestant:
  del directory
  return _fit(workload, steps_per_execution=BLOCK)


def _fit(workload: Workload, steps_per_execution: int) -> Contestant:
  model = workload.make_model()
  model.compile(
    optimizer=make_optimizer(),
    loss=make_loss(),
    metrics=['accuracy'],
    steps_per_execution=steps_per_execution,
  )
  dataset = workload.dataset()

  def run(steps: int) -> Scalars:
    fitted = model.fit(
      dataset,
      epochs=steps // BLOCK,  # fit averages metrics over an epoch
      steps_per_epoch=BLOCK,
      shuffle=False,  # avoids a warning that the dataset is shuffled already
      verbose=0,
    )
    return {name: values[-1] for name, values in fitted.history.items()}

  return run


# Orbit.


def orbit_controller(workload: Workload, directory: pathlib.Path) -> Contestant:
  """A StandardTrainer under a Controller that writes summaries."""
  step = HandStep(workload)
  global_step = orbit.utils.create_global_step()
  newest: dict[str, Any] = {}

  class Trainer(orbit.StandardTrainer):
    """Takes a step, in Orbit's interface."""

    def train_loop_begin(self) -> None:
      step.reset()

    def train_step(self, iterator: Any) -> None:
      step.take(next(iterator))
      global_step.assign_add(1)

    def train_loop_end(self) -> dict[str, tf.Tensor]:
      newest.update(step.results())
      return dict(newest)

  controller = orbit.Controller(
    global_step=global_step,
    trainer=Trainer(workload.dataset()),
    steps_per_loop=BLOCK,
    summary_interval=BLOCK,
    summary_dir=str(directory / 'orbit'),
  )

  def run(steps: int) -> Scalars:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints each loop
      controller.train(int(global_step.numpy()) + steps)
    return {name: float(value) for name, value in newest.items()}

  return run


# The benchmark.


def contestants() -> dict[str, Callable[..., Contestant]]:
  """Returns name -> function that makes the contestant."""
  others = {
    'hand': hand,
    'call': call,
    'fit': fit,
    'fit_100': fit_100,
    'orbit': orbit_controller,
  }
  only = set(_ONLY.value or others)
  if only - set(others):
    raise app.UsageError(f'--only takes some of {", ".join(others)}')
  if 'orbit' in only and orbit is None:
    print(ORBIT_HINT)
    only.discard('orbit')
  same_input = {SAME_INPUT: tftrain_same_input} if _SHARED_INPUT.value else {}
  return {
    TFTRAIN: tftrain_arrays,
    **same_input,
    **{name: make for name, make in others.items() if name in only},
  }


def measure(
  runs: Mapping[str, Contestant], steps: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, Scalars]]:
  """Times the contestants in turns, a different one first each round.

  Returns:
    Name -> microseconds per step in each round, and name -> last metrics.
  """
  names = list(runs)
  times: dict[str, list[float]] = {name: [] for name in names}
  scalars = {}
  for turn in range(rounds):
    first = turn % len(names)
    for name in names[first:] + names[:first]:
      gc.collect()
      begun = time.perf_counter()
      scalars[name] = runs[name](steps)
      seconds = time.perf_counter() - begun
      times[name].append(seconds / steps * 1e6)
  return times, scalars


def ratios(
  times: Mapping[str, Sequence[float]], name: str, base: str
) -> list[float]:
  """Returns the step time of `name` divided by that of `base`, per round."""
  return [a / b for a, b in zip(times[name], times[base], strict=True)]


def table(
  times: Mapping[str, Sequence[float]], scalars: Mapping[str, Scalars]
) -> Iterable[str]:
  """Yields the lines of the table, one per contestant."""
  bases = [base for base in (TFTRAIN, SAME_INPUT) if base in times]
  heads = {TFTRAIN: '/ tftrain', SAME_INPUT: '/ same input'}
  head = f'{"":20} {"us/step":>8}'
  head += ''.join(f' {heads[base]:>12} {"range":>11}' for base in bases)
  yield head + f' {"loss":>6} {"acc":>5}'
  for name, values in times.items():
    line = f'{name:20} {statistics.median(values):8.1f}'
    for base in bases:
      found = ratios(times, name, base)
      span = f'{min(found):.2f}-{max(found):.2f}'
      line += f' {statistics.median(found):12.2f} {span:>11}'
    last = scalars[name]
    yield line + f' {last["loss"]:6.3f} {last["accuracy"]:5.3f}'


def numbers(
  times: Mapping[str, Sequence[float]], scalars: Mapping[str, Scalars]
) -> dict[str, Any]:
  """Returns the numbers of the table and of each round, for JSON."""
  return {
    name: {
      'microseconds_per_step': statistics.median(values),
      'ratio_to_tftrain': statistics.median(ratios(times, name, TFTRAIN)),
      'rounds': values,
      'loss': scalars[name]['loss'],
      'accuracy': scalars[name]['accuracy'],
    }
    for name, values in times.items()
  }


def settings(workload: Workload, steps: int) -> dict[str, Any]:
  """Returns the settings and the environment of the benchmark."""
  devices = tf.config.list_logical_devices()
  return {
    'model': workload.title,
    'batch_size': workload.batch_size,
    'steps': steps,
    'rounds': _ROUNDS.value,
    'warm_up': _WARM_UP.value,
    'python': platform.python_version(),
    'tensorflow': tf.__version__,
    'keras': keras.__version__,
    'machine': platform.machine(),
    'cores': os.cpu_count(),
    'devices': [device.name for device in devices],
  }


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'what is {argv[1]!r}?')
  logging.set_verbosity(logging.WARNING)  # Orbit logs each loop
  workload = WORKLOADS[_MODEL.value]
  steps = _STEPS.value or workload.steps
  ran = settings(workload, steps)
  print(', '.join(f'{key} {value}' for key, value in ran.items()))
  with tempfile.TemporaryDirectory() as directory:
    runs = {}
    for name, make in contestants().items():
      runs[name] = make(workload, pathlib.Path(directory))
      runs[name](_WARM_UP.value)
    times, scalars = measure(runs, steps, _ROUNDS.value)
  print('\n'.join(table(times, scalars)))
  if _JSON.value:
    report = {**ran, 'contestants': numbers(times, scalars)}
    text = json.dumps(report, indent=2) + '\n'
    pathlib.Path(_JSON.value).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  app.run(main)

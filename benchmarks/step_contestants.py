"""The contestants of benchmarks/steps.py: ways to write a training loop.

docs/benchmarks.md describes them.
"""

import atexit
from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import shuffled_rows
from benchmarks import step_workloads
import tftrain

try:
  import orbit
except ImportError:
  orbit = None

# Steps between two readings of the metrics; also the steps per call of a
# contestant with an inner loop.
BLOCK = 100

# A step beyond the last round.
NEVER = 10**9

TFTRAIN = 'tftrain'
SAME_INPUT = 'tftrain, same input'
TFTRAIN_BLOCK = 'tftrain, block'
BLOCK_SAME_INPUT = 'tftrain, block, same input'

ORBIT_HINT = (
  'Orbit is not installed; to include it: '
  'pip install --no-deps tf-models-official==2.20.0 tf-keras==2.21.0'
)
JAX_STEPS = pathlib.Path(__file__).parent / 'jax_steps.py'

Workload = step_workloads.Workload
Scalars = step_workloads.Scalars
Contestant = Callable[[int], Scalars]
"""Takes the given number of steps; returns the means of the last 100.

A contestant in another process also returns the `seconds` it took.
"""
Maker = Callable[[Workload, pathlib.Path], Contestant]
"""Makes a contestant, given a directory for its files."""


class LeftOut(Exception):
  """A contestant cannot run here; one line that says why."""


# Hand-written loops.


def lean(workload: Workload, directory: pathlib.Path) -> Contestant:
  """Runs the loop in the graph; its sums are tensors of the loop."""
  del directory
  iterator = iter(workload.dataset())
  loop, names = _lean_loop(workload, lambda iterator, _: next(iterator))
  return _lean_run(lambda: loop(iterator), names)


def lean_arrays(workload: Workload, directory: pathlib.Path) -> Contestant:
  """The same loop; it gathers its batches from arrays in memory."""
  del directory
  images, labels = map(tf.constant, workload.arrays())
  rows = shuffled_rows.blocks(len(labels), workload.batch_size, BLOCK)

  def batch(rows: tf.Tensor, index: tf.Tensor) -> step_workloads.Batch:
    chosen = rows[index]
    return tf.gather(images, chosen), tf.gather(labels, chosen)

  loop, names = _lean_loop(workload, batch)
  return _lean_run(lambda: loop(tf.constant(next(rows))), names)


def _lean_loop(
  workload: Workload, batch: Callable[[Any, tf.Tensor], step_workloads.Batch]
) -> tuple[Callable[[Any], Any], Any]:
  """Returns the compiled loop over `batch(source, index)`, and its names."""
  step = workload.lean_step()

  @tf.function(autograph=False)
  def loop(source: Any) -> Any:
    def body(index: tf.Tensor, *sums: tf.Tensor) -> Any:
      means = step(batch(source, index))
      added = [a + b for a, b in zip(sums, means, strict=True)]
      return index + 1, *added

    _, *sums = tf.while_loop(
      lambda index, *_: index < BLOCK, body, (tf.constant(0), 0.0, 0.0)
    )
    return [total / BLOCK for total in sums]

  return loop, step.names


def _lean_run(call: Callable[[], Any], names: Any) -> Contestant:
  def run(steps: int) -> Scalars:
    for _ in range(steps // BLOCK):
      scalars = dict(zip(names, map(float, call()), strict=True))
    return scalars

  return run


def hand(workload: Workload, directory: pathlib.Path) -> Contestant:
  """Runs the loop in the graph."""
  del directory
  step = workload.hand_step()
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
  step = workload.hand_step()
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


def fit(
  workload: Workload, directory: pathlib.Path, **options: Any
) -> Contestant:
  """Calls `fit`; `options` are those of `compile`."""
  del directory
  model = workload.compiled(**options)
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
  if orbit is None:
    raise LeftOut(ORBIT_HINT)
  step = workload.hand_step()
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


# JAX.


def jax_scan(
  workload: Workload, directory: pathlib.Path, model: str, python: str
) -> Contestant:
  """Scans over the steps in a process of its own.

  Args:
    workload: The Workload.
    directory: Where to save the data and the first weights for that process.
    model: Name of the model in jax_steps.py.
    python: The Python to run.
  """
  path = directory / 'jax.npz'
  np.savez(path, **_start(workload))
  process = subprocess.Popen(
    [python, JAX_STEPS, model, path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    # By default it takes most of the memory of a GPU, as TensorFlow does.
    env={**os.environ, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
  )

  def ask(steps: int | None = None) -> dict[str, Any]:
    assert process.stdin and process.stdout
    if steps is not None:
      process.stdin.write(f'{steps}\n')
      process.stdin.flush()
    line = process.stdout.readline()
    if not line:
      raise RuntimeError(f'the JAX process ended with {process.wait()}')
    answer: dict[str, Any] = json.loads(line)
    return answer

  atexit.register(process.communicate)  # closes its input, which ends it
  versions = ask()
  if 'left_out' in versions:
    raise LeftOut(versions['left_out'])
  print(', '.join(f'{name} {version}' for name, version in versions.items()))
  return ask


def _start(workload: Workload) -> dict[str, Any]:
  """Returns the data and the first weights, for JAX."""
  images, labels = workload.arrays()
  model = workload.make_model()
  return {
    'images': images,
    'labels': labels.astype('int32'),
    'batch_size': workload.batch_size,
    **{f'weight_{i}': w.numpy() for i, w in enumerate(model.trainable_weights)},
    **{
      f'moving_{i}': w.numpy()
      for i, w in enumerate(model.non_trainable_weights)
    },
  }


# tftrain.


def tftrain_arrays(
  workload: Workload, directory: pathlib.Path, jit: str
) -> Contestant:
  data = tftrain.Arrays(workload.arrays(), workload.batch_size)
  return _tftrain(workload, directory / f'arrays_{jit}', data, jit)


def tftrain_same_input(
  workload: Workload, directory: pathlib.Path, jit: str
) -> Contestant:
  data = tftrain.data.DatasetPipeline(workload.dataset())
  return _tftrain(workload, directory / f'batches_{jit}', data, jit)


def _tftrain(
  workload: Workload,
  directory: pathlib.Path,
  data: tftrain.data.Pipeline,
  jit: str,
) -> Contestant:
  """Returns a full run: summaries, metrics file, evaluation, checkpoints."""
  task = workload.make_task()
  trainer = tftrain.Trainer(
    task,
    data,
    steps_per_loop=BLOCK,
    log_every=BLOCK,
    update=tftrain.Update(jit=jit),
  )
  writer = tftrain.summary.SummaryWriter(directory)
  publish: list[tftrain.Action] = [
    writer,
    tftrain.summary.MetricsFile(directory),
  ]
  test_data = tftrain.Arrays(workload.arrays(), 100, training=False)
  evaluator = tftrain.Evaluator(
    task, test_data, actions=publish, stop=trainer.stop_variable
  )
  checkpointer = tftrain.Checkpointer(
    directory, trainer, before_commit=writer.flush
  )
  actions: list[tftrain.Action] = [
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
    return workload.reported(report.scalars)

  return run


def others(model: str, jax_python: str) -> Mapping[str, Maker]:
  """Returns name -> maker of each contestant but tftrain, for a model."""
  return {
    'lean': lean,
    'lean, arrays': lean_arrays,
    'hand': hand,
    'call': call,
    'fit': fit,
    'fit_100': functools.partial(fit, steps_per_execution=BLOCK),
    'fit_jit': functools.partial(
      fit, steps_per_execution=BLOCK, jit_compile=True
    ),
    'orbit': orbit_controller,
    'jax': functools.partial(jax_scan, model=model, python=jax_python),
  }


OURS: Mapping[str, Maker] = {
  TFTRAIN: functools.partial(tftrain_arrays, jit='off'),
  SAME_INPUT: functools.partial(tftrain_same_input, jit='off'),
  TFTRAIN_BLOCK: functools.partial(tftrain_arrays, jit='block'),
  BLOCK_SAME_INPUT: functools.partial(tftrain_same_input, jit='block'),
}

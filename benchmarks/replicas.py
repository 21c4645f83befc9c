"""Benchmark of a step on two replicas, and of the start of two workers.

  python benchmarks/replicas.py
  python benchmarks/replicas.py --start

The first command compares the loop under a MirroredStrategy of two logical CPUs
with hand-written loops: `strategy.run` on a DistributedDataset. The second
starts two worker processes on loopback and waits for their first step.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from absl import app
from absl import flags
import keras
import tensorflow as tf

from benchmarks import step_contestants as contestants_lib
from benchmarks import step_workloads as workloads
from benchmarks import steps as engine
import tftrain
from tftrain.distribute import strategy as strategy_lib

_START = flags.DEFINE_bool('start', False, 'Times the start of two workers.')

# The workload of benchmarks/steps.py.
flags.FLAGS.set_default('model', 'mlp')

WORKLOAD = workloads.WORKLOADS['mlp']


def ours(data: Any) -> contestants_lib.Contestant:
  """Returns a Trainer that publishes its Reports, as in a run."""
  strategy = strategy_lib.make_strategy('mirrored')
  with strategy.scope():
    task = tftrain.SupervisedTask(
      WORKLOAD.make_model(),
      loss=workloads.make_loss(),
      optimizer=workloads.make_optimizer(),
      metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
    )
  trainer = tftrain.Trainer(
    task,
    data,
    strategy=strategy,
    steps_per_loop=contestants_lib.BLOCK,
    log_every=contestants_lib.BLOCK,
    update=tftrain.Update(jit='off'),
  )
  reports = trainer.steps(contestants_lib.NEVER)

  def run(steps: int) -> workloads.Scalars:
    for _ in range(steps // contestants_lib.BLOCK):
      report = next(reports)
    return report.scalars

  return run


class HandStep:
  """A hand-written training step for several replicas."""

  def __init__(self) -> None:
    cpus = [cpu.name for cpu in tf.config.list_logical_devices('CPU')]
    self.strategy = tf.distribute.MirroredStrategy(cpus)
    with self.strategy.scope():
      self._model = WORKLOAD.make_model()
      self._optimizer = workloads.make_optimizer()
      self._optimizer.build(self._model.trainable_variables)
      self._metrics = {
        'loss': keras.metrics.Mean(),
        'accuracy': keras.metrics.SparseCategoricalAccuracy(),
      }
      self._loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction='none'
      )
    self.iterator = iter(
      self.strategy.experimental_distribute_dataset(WORKLOAD.dataset())
    )

  def take(self, iterator: Any) -> None:
    self.strategy.run(self._on_replica, (next(iterator),))

  def _on_replica(self, batch: tuple[tf.Tensor, tf.Tensor]) -> None:
    images, labels = batch
    with tf.GradientTape() as tape:
      logits = self._model(images, training=True)
      values = self._loss(labels, logits)
      loss = tf.reduce_sum(values) / WORKLOAD.batch_size
    variables = self._model.trainable_variables
    gradients = tape.gradient(loss, variables)
    self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
    self._metrics['loss'].update_state(values)
    self._metrics['accuracy'].update_state(labels, logits)

  def read(self) -> workloads.Scalars:
    scalars = {n: float(m.result()) for n, m in self._metrics.items()}
    for metric in self._metrics.values():
      metric.reset_state()
    return scalars


def hand() -> contestants_lib.Contestant:
  """Runs the loop in the graph, a hundred steps per call."""
  step = HandStep()

  @tf.function
  def loop(iterator: Any, n: tf.Tensor) -> None:
    for _ in tf.range(n):
      step.take(iterator)

  n = tf.constant(contestants_lib.BLOCK)

  def run(steps: int) -> workloads.Scalars:
    for _ in range(steps // contestants_lib.BLOCK):
      loop(step.iterator, n)
      scalars = step.read()
    return scalars

  return run


def call() -> contestants_lib.Contestant:
  """Calls a tf.function once per step, as TensorFlow's guide does."""
  step = HandStep()
  one_step = tf.function(step.take)

  def run(steps: int) -> workloads.Scalars:
    for _ in range(steps // contestants_lib.BLOCK):
      for _ in range(contestants_lib.BLOCK):
        one_step(step.iterator)
      scalars = step.read()
    return scalars

  return run


CONTESTANTS: Mapping[str, Callable[[], contestants_lib.Contestant]] = {
  contestants_lib.TFTRAIN: lambda: ours(
    tftrain.Arrays(WORKLOAD.arrays(), WORKLOAD.batch_size)
  ),
  contestants_lib.SAME_INPUT: lambda: ours(
    tftrain.data.DatasetPipeline(WORKLOAD.dataset())
  ),
  'hand': hand,
  'call': call,
}


def seconds_to_first_step(directory: pathlib.Path, *arguments: str) -> float:
  """Returns the seconds from process start to the first line of metrics."""
  command = [
    sys.executable, '-m', 'tftrain', '--gin_file=configs/digits.gin',
    f'--model_dir={directory}', '--gin.Experiment.log_every=1', *arguments,
  ]  # fmt: skip
  begun = time.perf_counter()
  with subprocess.Popen(
    command,
    cwd=pathlib.Path(__file__).parents[1],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  ) as process:
    metrics = directory / 'metrics.jsonl'
    while not (metrics.exists() and metrics.stat().st_size):
      if process.poll() is not None:
        raise app.UsageError(f'{command} ended with {process.returncode}')
      time.sleep(0.01)
    seconds = time.perf_counter() - begun
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
  return seconds


def time_starts() -> None:
  for turn in range(engine._ROUNDS.value):
    for name, arguments in {
      'one process': (),
      'two workers': ('--local_workers=2',),
    }.items():
      with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, 'run')
        seconds = seconds_to_first_step(path, *arguments)
      print(f'round {turn + 1}: {name} {seconds:.1f} s', flush=True)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'what is {argv[1]!r}?')
  if _START.value:
    time_starts()
    return
  strategy_lib.set_local_devices(2)
  steps = engine._STEPS.value or WORKLOAD.steps
  ran = engine.settings(WORKLOAD, steps)
  print(', '.join(f'{key} {value}' for key, value in ran.items()))
  runs = {}
  for name, make in CONTESTANTS.items():
    runs[name] = make()
    runs[name](engine._WARM_UP.value)
  times, scalars = engine.measure(runs, steps, engine._ROUNDS.value)
  bases = {
    contestants_lib.TFTRAIN: 'tftrain',
    contestants_lib.SAME_INPUT: 'same input',
  }
  print('\n'.join(engine.table(times, scalars, bases=bases)))


if __name__ == '__main__':
  app.run(main)

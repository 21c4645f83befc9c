"""Benchmark of one pass for several optimizers, as time ratios.

  python benchmarks/one_pass.py

A CycleGAN of dense networks: two generators and two critics, each with an
optimizer. Contestants take turns, as in steps.py:

one pass: `minimize(losses, batch, pairs=...)`.
two passes: A `minimize` for the generators and one for the critics, each with
  a forward pass of all networks.
hand: A persistent `tf.GradientTape`, four `tape.gradient`, four
  `apply_gradients`, in a loop in the graph.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
import statistics
import sys
from typing import Any

from absl import app
from absl import flags
import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import step_contestants as contestants_lib
from benchmarks import steps as engine
import tftrain

for _name in ('model', 'shared_input', 'only', 'jax_python', 'chart', 'json'):
  delattr(flags.FLAGS, _name)

_WIDTH = flags.DEFINE_integer('width', 256, 'Units of each layer.')
_BATCH = 64
_FEATURES = 64
_STEPS = 200


def network(outputs: int) -> keras.Model:
  width = _WIDTH.value
  layers = [keras.layers.Dense(width, 'relu') for _ in range(3)]
  return keras.Sequential(
    [keras.Input((_FEATURES,)), *layers, keras.layers.Dense(outputs)]
  )


def data() -> tuple[np.ndarray, np.ndarray]:
  random = np.random.RandomState(0)
  x = random.normal(size=(4096, _FEATURES)).astype('float32')
  return x, 0.5 - x[::-1] ** 2


class CycleGAN(tftrain.Task):
  """Two generators and two critics; `losses` has a value for each."""

  def __init__(self) -> None:
    super().__init__()
    keras.utils.set_random_seed(0)
    self.nets = {
      'g': network(_FEATURES),
      'f': network(_FEATURES),
      'dx': network(1),
      'dy': network(1),
    }
    self.rules = {
      name: keras.optimizers.Adam(2e-4, beta_1=0.5) for name in self.nets
    }

  def values(self, batch: Any) -> dict[str, tf.Tensor]:
    """Returns name of a network -> losses, `[batch]`."""
    x, y = batch
    g, f, dx, dy = self.nets.values()
    made_y, made_x = g(x), f(y)
    cycle = _l1(f(made_y), x) + _l1(g(made_x), y)
    same = _l1(g(y), y) + _l1(f(x), x)
    judged_x, judged_y = dx(made_x), dy(made_y)
    total = _l2(judged_y, 1.0) + _l2(judged_x, 1.0) + 10.0 * cycle + 5.0 * same
    return {
      'g': total,
      'f': total,
      'dx': 0.5 * (_l2(dx(x), 1.0) + _l2(judged_x, 0.0)),
      'dy': 0.5 * (_l2(dy(y), 1.0) + _l2(judged_y, 0.0)),
    }

  def losses(self, batch: Any, training: bool) -> dict[str, tftrain.Loss]:
    del training
    values = self.values(batch)
    return {name: tftrain.Loss(value) for name, value in values.items()}

  def train_step(self, batch: Any) -> Any:
    pairs = {name: (self.rules[name], net) for name, net in self.nets.items()}
    return self.minimize(self.losses, batch, pairs=pairs)


class TwoPasses(CycleGAN):
  """The generators in one pass, the critics in another."""

  def train_step(self, batch: Any) -> Any:
    for names in (('g', 'f'), ('dx', 'dy')):

      def losses(
        rows: Any, training: bool, names: Sequence[str] = names
      ) -> dict[str, tftrain.Loss]:
        found = self.losses(rows, training)
        return {name: found[name] for name in names}

      pairs = {name: (self.rules[name], self.nets[name]) for name in names}
      step = self.minimize(losses, batch, pairs=pairs)
    return step


def _l1(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
  return tf.reduce_mean(tf.abs(one - other), -1)


def _l2(one: tf.Tensor, other: float) -> tf.Tensor:
  return tf.reduce_mean((one - other) ** 2, -1)


def ours(task: CycleGAN, jit: str) -> contestants_lib.Contestant:
  trainer = tftrain.Trainer(
    task, tftrain.Arrays(data(), _BATCH), update=tftrain.Update(jit=jit)
  )
  reports = trainer.steps(contestants_lib.NEVER)

  def run(steps: int) -> Mapping[str, float]:
    for _ in range(steps // contestants_lib.BLOCK):
      report = next(reports)
    return report.scalars

  return run


def hand() -> contestants_lib.Contestant:
  task = CycleGAN()
  x, y = map(tf.constant, data())
  for name, net in task.nets.items():
    task.rules[name].build(net.trainable_variables)

  def step(rows: tf.Tensor) -> None:
    with tf.GradientTape(persistent=True) as tape:
      values = task.values((tf.gather(x, rows), tf.gather(y, rows)))
      means = {name: tf.reduce_mean(value) for name, value in values.items()}
    for name, net in task.nets.items():
      variables = net.trainable_variables
      found = tape.gradient(means[name], variables)
      task.rules[name].apply_gradients(zip(found, variables, strict=True))

  @tf.function
  def loop(rows: tf.Tensor) -> None:
    for index in tf.range(contestants_lib.BLOCK):
      step(rows[index])

  random = np.random.RandomState(0)

  def run(steps: int) -> Mapping[str, float]:
    for _ in range(steps // contestants_lib.BLOCK):
      size = (contestants_lib.BLOCK, _BATCH)
      loop(tf.constant(random.randint(0, len(x), size)))
    return {}

  return run


MAKERS: Mapping[str, Callable[[], contestants_lib.Contestant]] = {
  'one pass': lambda: ours(CycleGAN(), 'off'),
  'two passes': lambda: ours(TwoPasses(), 'off'),
  'hand': hand,
  'one pass, block': lambda: ours(CycleGAN(), 'block'),
  'two passes, block': lambda: ours(TwoPasses(), 'block'),
}


def main(argv: Sequence[str]) -> None:
  del argv
  runs = {name: make() for name, make in MAKERS.items()}
  for run in runs.values():
    run(_STEPS)
  times, _ = engine.measure(runs, _STEPS, flags.FLAGS.rounds)
  print(f'{"":20} us/step  / one pass')
  for name, values in times.items():
    ratio = statistics.median(engine.ratios(times, name, 'one pass'))
    print(f'{name:20} {statistics.median(values):7.0f} {ratio:11.2f}')


if __name__ == '__main__':
  app.run(main)

"""Multi-task learning: a shared backbone with two heads.

Trains both heads, then one head on the frozen backbone, then exports the
backbone alone.

python -m examples.heads --directory=/tmp/heads
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools

from absl import app
from absl import flags
import gin
import keras
import numpy as np
import tensorflow as tf

from examples import digits
import tftrain

# Labels of each head by digit. A handwritten 4 has mostly no closed loop.
LABELS = {
  'digit': np.arange(10),
  'loop': np.isin(np.arange(10), [0, 6, 8, 9]).astype('int64'),
}


class Heads(tftrain.Task):
  """A backbone with two heads.

  A batch is head -> (images, labels), for the heads to train.
  """

  def __init__(self, units: int, optimizer: Callable[[], keras.Optimizer]):
    # One optimizer per head: moments mixed from two losses fit neither.
    super().__init__(optimizer={head: optimizer() for head in LABELS})
    self.trunk = dense('trunk', 64, units, 'relu')
    self.heads = {k: dense(k, units, len(set(v))) for k, v in LABELS.items()}

  def train_step(self, batch):
    # Each update changes its head and the backbone; the step counts once.
    for head, rows in batch.items():
      own = self.optimizer[head]
      step = self.minimize(self.loss, {head: rows}, optimizer=own, name=head)
    return step

  def loss(self, batch, training):
    head, (images, labels) = next(iter(batch.items()))
    logits = self.heads[head](self.trunk(images))  # [batch, classes]
    values = keras.losses.sparse_categorical_crossentropy(
      labels, logits, from_logits=True
    )
    return tftrain.Loss(values, accuracy=tf.argmax(logits, -1) == labels)

  def features(self, batch):
    return next(iter(batch.values()))[0]

  def serve(self, images):
    features = self.trunk(images)  # [batch, units]
    return {k: tf.nn.softmax(head(features)) for k, head in self.heads.items()}


def dense(name: str, inputs: int, units: int, activation: str | None = None):
  layer = keras.layers.Dense(units, activation, name='dense')
  return keras.Sequential([keras.Input((inputs,)), layer], name=name)


@gin.register(module='heads')
def make_task(
  units: int = 64,
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  start: str | None = None,
) -> Heads:
  """Returns the Task, with the last weights of the run in `start` if given."""
  task = Heads(units, optimizer)
  if start:
    saved = tf.train.load_checkpoint(f'{start}/checkpoints')
    heads = {f'heads/{name}': head for name, head in task.heads.items()}
    for part, model in {'trunk': task.trunk, **heads}.items():
      for weight in model.variables:
        weight.assign(saved.get_tensor(f'{part}/{weight.path}'))
  return task


@gin.register(module='heads')
def train_data(batch_sizes: Mapping[str, int]) -> tftrain.data.DatasetPipeline:
  """Returns batches for some of the heads; no image trains both."""
  images, digit = digits.load('train')
  parts = {}
  for head, batch_size in batch_sizes.items():
    half = slice(list(LABELS).index(head), None, 2)
    rows = images[half], LABELS[head][digit[half]]
    parts[head] = tftrain.Arrays(rows, batch_size).dataset(seed=0)
  return tftrain.data.DatasetPipeline(tf.data.Dataset.zip(parts))


@gin.register(module='heads')
def test_data(head: str) -> tftrain.Arrays:
  images, digit = digits.load('test')
  rows = {head: (images, LABELS[head][digit])}
  return tftrain.Arrays(rows, batch_size=100, training=False)


def run(directory: str, steps: int = 1000) -> None:
  data = functools.partial(train_data, {'digit': 32, 'loop': 16})
  tests = {head: functools.partial(test_data, head) for head in LABELS}
  both = tftrain.Experiment(make_task, data, tests, steps=steps, export=False)
  both.train(f'{directory}/both')
  loop = tftrain.Experiment(
    functools.partial(make_task, start=f'{directory}/both'),
    functools.partial(train_data, {'loop': 16}),
    tests,
    steps=steps,
    update=tftrain.Update(freeze='trunk|digit'),
    export=False,
  ).prepare(f'{directory}/loop')
  loop.train()
  task, images = loop.trainer.task, loop.trainer.example_features()
  tftrain.export.export_model(
    task, images, f'{directory}/trunk', part=task.trunk
  )


if __name__ == '__main__':
  flags.DEFINE_string('directory', '/tmp/heads', 'Where the results go.')
  app.run(lambda _: run(flags.FLAGS.directory))

"""A custom training program: Trainer, Evaluator and Checkpointer by hand.

  python examples/own_loop.py --model_dir=/tmp/own_loop

After a Ctrl-C, or with more --steps, the same command resumes the run. The
program uses neither gin nor an Experiment.
"""

from absl import app
from absl import flags
import keras
import numpy as np
from sklearn import datasets
import tensorflow as tf

import tftrain

_MODEL_DIR = flags.DEFINE_string(
  'model_dir', None, 'Where checkpoints and summaries go.', required=True
)
_STEPS = flags.DEFINE_integer('steps', 2000, 'Where the run ends.')
_STRATEGY = flags.DEFINE_string('strategy', 'auto', 'one_device or mirrored.')


class Digits(tftrain.SupervisedTask):
  """Shows misclassified digits under Images in TensorBoard."""

  def artifacts(self, batch):
    images, labels = batch  # [batch, 64], [batch]
    answers = tf.argmax(self.model(images, training=False), axis=-1)
    wrong = np.flatnonzero(answers != labels)
    lines = [f'- a {labels[i]}, taken for a {answers[i]}' for i in wrong]
    pictures = tf.reshape(tf.gather(images, wrong), [-1, 8, 8, 1])
    return {'wrong': pictures, 'wrong_answers': '\n'.join(lines)}


def make_task() -> Digits:
  layers = [
    keras.Input((64,)),
    keras.layers.Dense(64, 'relu'),
    keras.layers.Dropout(0.2),
    keras.layers.Dense(10),
  ]
  return Digits(
    keras.Sequential(layers),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=keras.optimizers.Adam(1e-3),
    metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
  )


def main(argv: list[str]) -> int:
  del argv
  keras.utils.set_random_seed(0)  # weights and dropout
  images, labels = datasets.load_digits(return_X_y=True)
  images = (images / 16).astype('float32')
  train, test = (images[::2], labels[::2]), (images[1::2], labels[1::2])

  strategy = tftrain.make_strategy(_STRATEGY.value)
  with strategy.scope():  # it places the variables on the replicas
    task = make_task()
  trainer = tftrain.Trainer(
    task, tftrain.Arrays(train, batch_size=32), strategy=strategy
  )
  writer = tftrain.summary.SummaryWriter(_MODEL_DIR.value)
  evaluator = tftrain.Evaluator(
    task,
    [test],
    strategy=strategy,
    actions=[writer, tftrain.summary.ProgressBar()],
  )
  # Flushes the events of a step before its checkpoint is committed: after a
  # kill, no curve has a gap.
  checkpointer = tftrain.Checkpointer(
    _MODEL_DIR.value, trainer, before_commit=writer.flush
  )
  restored = checkpointer.restore()
  print('A new run' if restored is None else f'Resumed from step {restored}')

  actions = [
    writer,
    tftrain.Every(500, evaluator),
    tftrain.Every(500, checkpointer),  # last: it saves the others' state
  ]
  with tftrain.platform.stop_on_signal(trainer.request_stop) as stopper:
    for report in trainer.steps(_STEPS.value, actions):
      # Custom code, every `log_every` steps.
      print(f'step {report.step:5d}  loss {report.scalars["loss"]:.4f}')
  writer.close()
  return stopper.exit_code


if __name__ == '__main__':
  app.run(main)

"""A run as users start it, and mishaps inside it, named by gin files.

80 steps with dropout, Adam and a moving average, an evaluation every 40.
"""

import sys
import time

import gin
import keras
import numpy as np
import tensorflow as tf

from tests.faults import scenarios
from tests.support import small_tasks
import tftrain
from tftrain.checkpoint import format
from tftrain.platform import files

STEPS = 80

_MADE = []  # tasks; no other way leads from an Action to the weights

RECIPE = f"""
import tests.faults.mishaps

Experiment.task = @mishaps.make_task
Experiment.train_data = @mishaps.train_data
Experiment.eval_data = @mishaps.eval_data
Experiment.steps = {STEPS}
Experiment.steps_per_loop = 5
Experiment.log_every = 5
Experiment.checkpoint_every = 10
Experiment.eval_every = 40
Experiment.export = False
Experiment.update = @Update()
Update.ema = 0.9
"""


class Mishap(scenarios.Slow):
  """A classifier in whose training steps something goes wrong, once.

  Args:
    pause: Seconds that each step takes longer.
    eval_pause: And each evaluated batch.
    what: `nan_loss`, `nan_gradient` or `out_of_memory`.
    at: In which of the steps that this process takes.
    *args: Of SupervisedTask.
  """

  def __init__(self, pause, eval_pause, what, at, *args):
    super().__init__(pause, *args)
    self._eval_pause = eval_pause
    self._what = what
    self._at = at
    self._taken = -1  # building takes one
    self._waits = 0

  def loss(self, batch, training):
    if not training:
      pause, self._pause = self._pause, self._eval_pause
      try:
        return super().loss(batch, training)
      finally:
        self._pause = pause
    loss = super().loss(batch, training)
    print('the loss is traced', file=sys.stderr)
    if self._what is None:
      return loss
    values = loss.values + self._mishap(tf.cast(self._is_now(), tf.float32))
    return tftrain.Loss(values, **loss.metrics)

  def wait(self, seconds):
    self._waits += 1
    if self._waits == 2:  # building waits once
      print('the first step begins', file=sys.stderr, flush=True)
    super().wait(seconds)

  def _is_now(self):
    def count():
      self._taken += 1
      return np.bool_(self._taken == self._at)

    now = tf.numpy_function(count, [], tf.bool)
    now.set_shape([])
    return now

  def _mishap(self, now):
    """Adds 0; what it says on the tin where `now` is 1."""
    weights = tf.convert_to_tensor(self.model.trainable_variables[0])
    if self._what == 'nan_loss':
      return tf.where(now > 0, np.nan, 0.0)
    if self._what == 'nan_gradient':
      # The square root of zero: its value is fine, its slope is not.
      zero = tf.reduce_sum(weights - tf.stop_gradient(weights))
      return tf.cond(now > 0, lambda: tf.sqrt(zero), lambda: tf.zeros([]))
    size = tf.where(now > 0, tf.constant(2**44, tf.int64), 1)
    return 0.0 * tf.reduce_sum(tf.random.stateless_uniform([size], [1, 2]))


@gin.register(module='mishaps')
def make_task(
  optimizer=keras.optimizers.Adam,
  width=8,
  dropout=0.3,
  pause=0.005,
  eval_pause=None,
  what=None,
  at=None,
  metric='sparse_categorical_accuracy',
  api_key=None,
):
  del api_key
  model = keras.Sequential(
    [
      keras.Input((6,)),
      keras.layers.Dense(width, 'relu'),
      keras.layers.Dropout(dropout),
      keras.layers.Dense(3),
    ]
  )
  task = Mishap(
    pause,
    eval_pause,
    what,
    at,
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer(0.01),
    {'accuracy': _METRICS.get(metric) or getattr(keras.metrics, metric)},
  )
  _MADE.append(task)
  return task


_METRICS = {
  'huge': lambda labels, logits: tf.fill(tf.shape(labels), 3e38),
  'nan': lambda labels, logits: tf.fill(tf.shape(labels), np.nan),
  'text': lambda labels, logits: tf.fill(tf.shape(labels), 'fine'),
  'entries': lambda labels, logits: tf.reshape(logits, [-1]),
}


@gin.register(module='mishaps')
def train_data(
  batch_size=8,
  bad_row=None,
  pattern=None,
  epochs=None,
  typed=False,
  filtered=False,
  stateful=False,
  of_any_size=False,
):
  """Arrays; or the records, batched, of a pattern of files."""
  if stateful:
    return tf.data.Dataset.from_generator(
      _forever, output_signature=tf.TensorSpec([8, 6])
    )
  if of_any_size:
    x, y = map(tf.constant, small_tasks.arrays())
    steps = tf.data.Dataset.range(STEPS)
    return steps.map(lambda i: (x[i % 64 :], y[i % 64 :]))
  if pattern is None:
    x, y = small_tasks.arrays()
    if bad_row is not None:
      x[bad_row] = np.nan
    return tftrain.Arrays((x, y), batch_size)
  return tftrain.data.Examples(
    tftrain.data.TFRecords(pattern, _SPEC if typed else None),
    batch_size,
    filter=(lambda example: example['label'] > 99) if filtered else None,
    select=('features', 'label'),
    epochs=epochs,
  )


_SPEC = {'features': 'float32[6]', 'label': 'int64'}


def _forever():
  while True:
    yield np.zeros([8, 6], 'float32')


@gin.register(module='mishaps')
def eval_data():
  return tftrain.Arrays(small_tasks.arrays(seed=5), 16, training=False)


class _Clock:
  """An Action that does nothing, and a clock that is wrong from now on."""

  seconds = 0

  def __init__(self):
    right = time.time
    time.time = lambda: right() + self.seconds

  def __call__(self, report):
    pass


@gin.register(module='mishaps')
class Tomorrow(_Clock):
  seconds = 86_400


@gin.register(module='mishaps')
class Yesterday(_Clock):
  seconds = -86_400


@gin.register(module='mishaps')
class SlowDisk:
  """An Action that does nothing, and a disk that takes its time."""

  def __init__(self, seconds=0.5):
    write = files.disk.write

    def slow(path, content):
      if '.tmp-ckpt-' in str(path):
        time.sleep(seconds)
      write(path, content)

    files.disk.write = slow

  def __call__(self, report):
    pass


@gin.register(module='mishaps')
class SlowReads:
  """An Action that does nothing, and checkpoints that take long to read."""

  def __init__(self, seconds=1.0):
    read = format.read_checkpoint

    def slow(path):
      time.sleep(seconds)
      return read(path)

    format.read_checkpoint = slow

  def __call__(self, report):
    pass


@gin.register(module='mishaps')
class Broken:
  """An Action that raises at a step."""

  def __init__(self, step=33):
    self._step = step

  def __call__(self, report):
    if report.step >= self._step:
      raise RuntimeError('out of paper')


@gin.register(module='mishaps')
class Poison:
  """An Action that makes the weights NaN at a step."""

  def __init__(self, step=45):
    self._step = step

  def __call__(self, report):
    if report.step == self._step:
      for variable in _MADE[-1].model.trainable_variables:
        variable.assign(variable * np.nan)

"""The straight way: few frames from `train` to the user's code."""

import pathlib
import sys
import traceback

import gin
import keras
import numpy as np
import tensorflow as tf

from tests.support import paths
import tftrain
from tftrain.config import loader

_PACKAGE = str(paths.ROOT / 'tftrain')
_TO_THE_LOSS = 12
_TO_THE_OPTIMIZER = 14
_TO_THE_EXPERIMENT = 7  # modules


def frames():
  return [
    f'{pathlib.Path(frame.filename).stem}.{frame.name}'
    for frame in traceback.extract_stack()
    if frame.filename.startswith(_PACKAGE)
  ]


class Longest:
  """The longest way so far."""

  def __init__(self):
    self.way = []

  def note(self):
    self.way = max(self.way, frames(), key=len)


def test_few_frames_from_train_to_loss_and_optimizer():
  to_loss, to_optimizer = Longest(), Longest()

  class Noting(keras.optimizers.SGD):
    def apply(self, *args, **kwargs):
      to_optimizer.note()
      return super().apply(*args, **kwargs)

  class Task(tftrain.Task):
    @tf.autograph.experimental.do_not_convert
    def loss(self, batch, training):
      if training and not tf.executing_eagerly():
        to_loss.note()
      x, y = batch
      return tftrain.Loss((self.model(x, training=training)[:, 0] - y) ** 2)

  x = np.ones([32, 3], 'float32')
  model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
  trainer = tftrain.Trainer(
    Task(model, Noting(0.1)), tftrain.Arrays((x, x[:, 0]), 16), log_every=2
  )
  trainer.train(4)
  assert to_loss.way[0] == to_optimizer.way[0] == 'trainer.train'
  assert len(to_loss.way) <= _TO_THE_LOSS, to_loss.way
  assert len(to_optimizer.way) <= _TO_THE_OPTIMIZER, to_optimizer.way


def test_few_modules_from_a_gin_binding_to_the_experiment():
  run = set()

  def note(frame, event, arg):
    del arg
    path = pathlib.Path(frame.f_code.co_filename)
    if event == 'call' and path.parent == pathlib.Path(_PACKAGE) / 'config':
      run.add(path.stem)

  def load():
    gin.clear_config()
    loader.load_all(
      ['configs/digits.gin'], ['Experiment.steps = 3'], [str(paths.ROOT)]
    )

  load()  # imports and registers, which a profile makes slow
  before = sys.getprofile()
  sys.setprofile(note)
  try:
    load()
  finally:
    sys.setprofile(before)
    gin.clear_config()
  assert 'validator' in run
  assert len(run) <= _TO_THE_EXPERIMENT, run

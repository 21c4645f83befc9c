"""Gin files and modules of the tests of config."""

import pathlib

import pytest

from tftrain import errors
from tftrain.config import loader
from tftrain.launch import command as command_lib

MODULE = """
import gin
import keras

from tests.support import small_tasks
import tftrain


@gin.register(module='{name}')
def make_task(optimizer=keras.optimizers.SGD, width: int = 8, password=''):
  return small_tasks.supervised(optimizer())


@gin.register(module='{name}')
def points(batch_size, training: bool = True, seed: int = 0):
  arrays = small_tasks.arrays(seed=seed)
  return tftrain.Arrays(arrays, batch_size, training=training)
"""
GOOD = """import mine

STEPS = 4
RATE = 0.01

Experiment:
  task = @mine.make_task
  train_data = @train/mine.points
  eval_data = {'test': @eval/mine.points}
  steps = %STEPS

mine.make_task.optimizer = @Adam
Adam.learning_rate = %RATE
mine.points.batch_size = 8
eval/mine.points:
  training = False
  seed = 1
"""
DYNAMIC = """from __gin__ import dynamic_registration
import keras
import mine
import tftrain

STEPS = 4

tftrain.Experiment:
  task = @mine.make_task
  train_data = @train/mine.points
  eval_data = {'test': @eval/mine.points}
  steps = %STEPS

mine.make_task.optimizer = @keras.optimizers.Adam
keras.optimizers.Adam.learning_rate = 0.01
mine.points.batch_size = 8
eval/mine.points:
  training = False
"""


def load(text, *flags, **options):
  """What the command makes of a file `a.gin` and some flags."""
  pathlib.Path('a.gin').write_text(text)
  argv, origins = command_lib.rewritten(['tftrain', *flags])
  bindings = [word.removeprefix('--gin_bindings=') for word in argv[1:]]
  return loader.load_all(['a.gin'], bindings, origins=origins, **options)


def said(text, *flags, **options):
  """The one line that refuses it."""
  with pytest.raises(errors.ConfigError) as raised:
    load(text, *flags, **options)
  (line,) = str(raised.value).splitlines()
  return line


def with_line(line):
  return f'{GOOD}{line}\n'


def replaced(old, new, text=GOOD):
  assert old in text
  return text.replace(old, new)

"""Trains in forked children that stop at a mark, so that they can be killed.

Importing TensorFlow costs seconds, so one process imports it, runs nothing, and
forks a child for every command that it reads: a line of JSON

  {"model_dir": ..., "mark": "block" | "save" | "retention" | "eval" | null,
   "count": n}

The child trains in `model_dir`. When it comes to `mark` for the n-th time it
writes the mark's name to stdout, and the thread that came there goes to sleep
for good, while all others go on: whoever reads the line kills the process.
"""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import json
import pathlib
import sys
import threading
import time

import keras
import tensorflow as tf

from tests.support import fork_servers
from tests.support import small_tasks
import tftrain
from tftrain.checkpoint import checkpointer as checkpointer_lib
from tftrain.checkpoint import format
from tftrain.platform import files
from tftrain.platform import hashing

STEPS = 120


class Marks:
  """Counts how often a place is passed and stops at the one asked for."""

  def __init__(self, mark, count):
    self._mark, self._count = mark, count
    self.armed = False

  def passed(self, mark, where=''):
    if not self.armed or mark != self._mark:
      return
    self._count -= 1
    if self._count == 0:
      print(f'{mark} {where}', flush=True)
      time.sleep(600)


class Marked(tftrain.SupervisedTask):
  """Passes a mark in each step and each evaluated batch, inside the graph."""

  def __init__(self, marks, *args):
    super().__init__(*args)
    self._marks = marks

  def loss(self, batch, training):
    mark = 'block' if training else 'eval'

    def passed(labels):
      self._marks.passed(mark)
      if self._marks.armed:
        time.sleep(0.004)  # a step long enough for saves to end meanwhile
      return labels

    x, y = batch
    shape = y.shape
    y = tf.numpy_function(passed, [y], tf.int64)
    y.set_shape(shape)
    return super().loss((x, y), training)


def mark_files(marks):
  """Passes marks between the writes of a save and of its retention.

  Only on the thread that saves: restoring reads and cleans up, too.
  """

  def passed(mark, where):
    if threading.current_thread().name == 'tftrain-checkpoint':
      marks.passed(mark, where)

  def wrap(owner, name, mark, before=True, after=False):
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
      if before:
        passed(mark, f'before {name}')
      result = original(*args, **kwargs)
      if after:
        passed(mark, f'after {name}')
      return result

    setattr(owner, name, wrapped)

  wrap(format, 'write_checkpoint', 'save', after=True)
  wrap(format, 'read_checkpoint', 'save')
  wrap(checkpointer_lib.Checkpointer, '_remove_old', 'retention')
  wrap(files, 'remove_directory', 'retention')
  wrap(files, '_remove_tree', 'retention')


def experiment(marks):
  def make_task():
    return Marked(
      marks,
      small_tasks.model(dropout=0.3),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      keras.optimizers.Adam(0.01),
      {
        'accuracy': keras.metrics.sparse_categorical_accuracy,
        'keras_accuracy': keras.metrics.SparseCategoricalAccuracy(),
      },
    )

  return tftrain.Experiment(
    make_task,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(seed=5), 16, training=False),
    steps=STEPS,
    steps_per_loop=7,
    log_every=20,
    eval_every=25,
    checkpoint_every=9,
    keep=2,
    export=False,
  )


def train(model_dir, mark, count):
  marks = Marks(mark, count)
  mark_files(marks)
  run = experiment(marks).prepare(model_dir)
  marks.armed = True
  run.train()
  state = {name: v.numpy() for name, v in run.trainer.read_state().items()}
  tf.io.gfile.makedirs(str(model_dir))
  digests = {
    name: hashing.array_digest(value) for name, value in sorted(state.items())
  }
  pathlib.Path(model_dir, 'digests.json').write_text(json.dumps(digests))
  print('done', flush=True)


def main():
  fork_servers.die_with_parent()
  print('ready', flush=True)
  for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
      fork_servers.die_with_parent()
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, 2)
      try:
        train(**json.loads(line))
        os._exit(0)
      finally:
        os._exit(1)
    print(f'pid {pid}', flush=True)
    os.waitpid(pid, 0)
    print('gone', flush=True)


if __name__ == '__main__':
  main()

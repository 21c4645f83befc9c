"""Predicts in forked children, slowly, so that they can be killed on the way.

Importing TensorFlow costs seconds, so one process imports it, runs nothing, and
forks a child for every line `SECONDS OUTPUT` that it reads: each batch takes so
many seconds. It answers with the child's number, and `ended` when it is gone.
"""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import sys
import time

import keras
import tensorflow as tf

from tests.support import fork_servers
from tests.support import small_tasks
import tftrain
from tftrain.evaluation import _prediction_files
from tftrain.evaluation import predictor

EXAMPLES, BATCH_SIZE = 203, 8


class Slow(tftrain.SupervisedTask):
  """Takes its time."""

  seconds = 0.0

  def serve(self, features):
    def wait(given):
      time.sleep(self.seconds)
      return given

    slow = tf.numpy_function(wait, [features], tf.float32)
    slow.set_shape(features.shape)
    logits = self.model(slow, training=False)
    return {'logits': logits, 'label': tf.argmax(logits, -1)}


def make_task():
  keras.utils.set_random_seed(0)
  task = Slow(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )
  task.build(tuple(tf.constant(a[:4]) for a in small_tasks.arrays()))
  return task


def data():
  return tftrain.Arrays(
    small_tasks.arrays(EXAMPLES), BATCH_SIZE, training=False
  )


def predict(output, seconds):
  _prediction_files.PART_BYTES = 500  # a file for every two batches
  task = make_task()
  task.seconds = float(seconds)
  predictor.predict(task, data(), output)


def main():
  fork_servers.die_with_parent()
  for line in sys.stdin:
    seconds, output = line.split(maxsplit=1)
    pid = os.fork()
    if pid == 0:
      fork_servers.die_with_parent()
      try:
        predict(output.strip(), seconds)
        os._exit(0)
      finally:
        os._exit(1)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print('ended', flush=True)


if __name__ == '__main__':
  main()

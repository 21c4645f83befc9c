"""Benchmark of observability: summaries, goodput ledger, stop test.

  python -m benchmarks.observers [--rounds=9]

summaries: An MLP trained with and without 50 scalars written every 100 steps to
  TensorBoard and metrics.jsonl, in turns; seconds with divided by seconds
  without. Also the share of the time spent in the writers, which is less noisy.
ledger: Entering and leaving a part, which happens twice in each block of steps.
stop: A TensorFlow loop that only counts, with and without reading the variable
  that ends it; microseconds per step.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import keras
import numpy as np
import tensorflow as tf

import tftrain
from tftrain.platform import goodput

STEPS, SCALARS = 1000, 50


def make_trainer():
  dense = keras.layers.Dense
  task = tftrain.SupervisedTask(
    keras.Sequential(
      [keras.Input((784,)), dense(256, 'relu'), dense(256, 'relu'), dense(10)]
    ),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(1e-3),
  )
  random = np.random.default_rng(0)
  x = random.standard_normal((10_000, 784), np.float32)
  y = random.integers(0, 10, 10_000)
  off = tftrain.Update(jit='off')
  return tftrain.Trainer(task, tftrain.Arrays((x, y), 128), update=off)


class Many:
  """Calls Actions with 50 scalars and adds up their seconds."""

  def __init__(self, *actions):
    self._actions = actions
    self.seconds = 0.0

  def __call__(self, report):
    if not report.scalars:
      return
    value = report.scalars['loss']
    scalars = {f'metric_{i}': value for i in range(SCALARS)}
    begun = time.perf_counter()
    for action in self._actions:
      action(dataclasses.replace(report, scalars=scalars))
    self.seconds += time.perf_counter() - begun


def summaries(rounds, directory):
  """Returns (seconds with / without, share in the writers) of each round."""
  found = []
  plain, observed = make_trainer(), make_trainer()
  writers = Many(
    tftrain.summary.SummaryWriter(directory),
    tftrain.summary.MetricsFile(directory),
  )
  for number in range(1, rounds + 2):
    begun = time.perf_counter()
    plain.train(number * STEPS)
    middle = time.perf_counter()
    writers.seconds = 0.0
    observed.train(number * STEPS, [writers])
    seconds = time.perf_counter() - middle
    if number > 1:  # the first one compiles
      found.append((seconds / (middle - begun), writers.seconds / seconds))
  return found


def booked(times=100_000):
  """Returns the microseconds to enter and leave a part."""
  book = goodput.Ledger()
  begun = time.perf_counter()
  for _ in range(times):
    with book.part('step'):
      pass
  return (time.perf_counter() - begun) / times * 1e6


def counted(stop, steps=100_000):
  """Returns microseconds per step of a loop; `stop` is a variable or None."""

  @tf.function(autograph=False)
  def run(n):
    def go_on(done):
      return done < n if stop is None else (done < n) & (stop.read_value() == 0)

    return tf.while_loop(go_on, lambda done: (done + 1,), (tf.constant(0),))

  run(tf.constant(10))
  begun = time.perf_counter()
  run(tf.constant(steps))
  return (time.perf_counter() - begun) / steps * 1e6


def said(name, found, unit):
  print(
    f'{name:<10} {statistics.median(found):8.3f} {unit} '
    f'({min(found):.3f} to {max(found):.3f})'
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=9)
  rounds = parser.parse_args().rounds
  with tempfile.TemporaryDirectory() as directory:
    found = summaries(rounds, pathlib.Path(directory))
  said('summaries', [ratio for ratio, _ in found], 'times')
  said('writers', [100 * share for _, share in found], '% of the time')
  said('ledger', [booked() for _ in range(rounds)], 'us')
  stop = tf.Variable(0)
  pairs = [(counted(stop), counted(None)) for _ in range(rounds)]
  said('stop', [one - other for one, other in pairs], 'us')


if __name__ == '__main__':
  main()

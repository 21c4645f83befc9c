"""Benchmark of stop latency: from SIGTERM to the return of `train`.

  python -m benchmarks.stops [--rounds=20] [--jit=block]

The signal comes at a random instant within one long block of compiled steps.
Prints the median and the largest time until `train` returned, and the time of
a step.
"""

import argparse
import os
import random
import signal
import statistics
import threading
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import keras
import numpy as np

import tftrain


def make_trainer(jit):
  model = keras.Sequential(
    [keras.Input((512,)), *(keras.layers.Dense(512, 'relu') for _ in range(8))]
  )
  task = tftrain.SupervisedTask(
    model, keras.losses.MeanSquaredError(), keras.optimizers.SGD(1e-4)
  )
  x = np.random.RandomState(0).normal(size=(512, 512)).astype('float32')
  return tftrain.Trainer(
    task,
    tftrain.Arrays((x, x), 64),
    steps_per_loop=10**6,
    log_every=10**9,
    update=tftrain.Update(jit=jit),
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--jit', choices=['off', 'block'], default='off')
  options = parser.parse_args()
  trainer = make_trainer(options.jit)
  trainer.train(5)
  begun = time.perf_counter()
  trainer.train(105)
  step = (time.perf_counter() - begun) / 100
  draw = random.Random(0)
  found = []
  for _ in range(options.rounds):
    sent = []

    def send(sent=sent):
      sent.append(time.perf_counter())
      os.kill(os.getpid(), signal.SIGTERM)

    with tftrain.platform.stop_on_signal(trainer.request_stop):
      threading.Timer(draw.uniform(0.5, 1.0), send).start()
      trainer.train(10**9)
      found.append(time.perf_counter() - sent[0])
  median = 1000 * statistics.median(found)
  print(f'a step {1000 * step:.1f} ms; stopped after {median:.1f} ms (median')
  print(f'of {options.rounds}), {1000 * max(found):.1f} ms at most')


if __name__ == '__main__':
  main()

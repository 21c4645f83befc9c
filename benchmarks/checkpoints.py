"""Benchmark of checkpoint saves: stall, slower steps, time to commit.

  python -m benchmarks.checkpoints [--rounds=15]

Trains a model of 201 MB. Each round saves it once while training waits (the
synchronous time) and once while training continues. Prints medians and 95th
percentiles.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import keras
import numpy as np

import tftrain

_WIDTH, _LAYERS, _BATCH = 2048, 12, 8


def make_trainer():
  layers = [keras.layers.Dense(_WIDTH, 'relu') for _ in range(_LAYERS)]
  model = keras.Sequential([keras.Input((_WIDTH,)), *layers])
  task = tftrain.SupervisedTask(
    model, keras.losses.MeanSquaredError(), keras.optimizers.SGD(1e-4)
  )
  x = np.random.RandomState(0).normal(size=(64, _WIDTH)).astype('float32')
  return tftrain.Trainer(
    task,
    tftrain.Arrays((x, x), _BATCH),
    log_every=10**6,
    update=tftrain.Update(jit='off'),
  )


def step(trainer):
  """Takes one step and returns its seconds."""
  begun = time.perf_counter()
  trainer.train(trainer.step + 1)
  return time.perf_counter() - begun


def measure(rounds, directory):
  trainer = make_trainer()
  checkpointer = tftrain.Checkpointer(directory, trainer, keep=1)
  for _ in range(3):
    step(trainer)
  found = {
    'synchronous': [],
    'stall': [],
    'total': [],
    'beside': [],
    'step': [],
  }
  for _ in range(rounds):
    found['step'] += [step(trainer) for _ in range(3)]
    begun = time.perf_counter()
    checkpointer.save()
    checkpointer.wait()
    found['synchronous'].append(time.perf_counter() - begun)
    step(trainer)
    begun = time.perf_counter()
    checkpointer.save()
    found['stall'].append(time.perf_counter() - begun)
    while checkpointer.is_writing:
      found['beside'].append(step(trainer))
    checkpointer.wait()
    found['total'].append(time.perf_counter() - begun)
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=15)
  rounds = parser.parse_args().rounds
  with tempfile.TemporaryDirectory() as directory:
    found = measure(rounds, pathlib.Path(directory))
  for name, seconds in found.items():
    p95 = float(np.percentile(seconds, 95))
    median = statistics.median(seconds)
    print(f'{name:<12} {1000 * median:9.1f} ms   p95 {1000 * p95:9.1f} ms')
  stall = statistics.median(found['stall'])
  share = stall / statistics.median(found['synchronous'])
  slower = statistics.median(found['beside']) / statistics.median(found['step'])
  print(f'stall / synchronous {share:.1%}; a step beside a save {slower:.2f} x')


if __name__ == '__main__':
  main()

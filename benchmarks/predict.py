"""Benchmark of prediction throughput against a hand-written loop.

  python -m benchmarks.predict [--rounds=7] [--kind=jsonl] [--examples=240000]

Examples of 784 floats go through a small MLP, in batches of 128, into a
file. The hand-written loop calls the SavedModel for each batch of a
tf.data.Dataset with prefetch(2), then writes its rows with the same code, one
batch after the other. Contestants take turns; the reported ratio is the median
over rounds. The times include the start: for tftrain the digests of data and
weights and the tracing of its step, for the loop the loading of the SavedModel.
The first round is not counted.
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
import tensorflow as tf

import tftrain
from tftrain.evaluation import _prediction_files
from tftrain.evaluation import predictor

FEATURES, BATCH_SIZE = 784, 128


def make_task(x, y):
  model = keras.Sequential(
    [
      keras.Input((FEATURES,)),
      keras.layers.Dense(128, 'relu'),
      keras.layers.Dense(10),
    ]
  )
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  task = tftrain.SupervisedTask(model, loss, keras.optimizers.SGD(0.1))
  task.build((tf.constant(x[:4]), tf.constant(y[:4])))
  return task


def by_hand(export, x, store_type, directory, output):
  """Runs the hand-written loop."""
  loaded = tf.saved_model.load(export)
  serve = loaded.signatures['serving_default']
  directory.mkdir()
  store = store_type(directory)
  dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH_SIZE).prefetch(2)
  for batch in dataset:
    outputs = serve(inputs=batch)
    store.add({name: value.numpy() for name, value in outputs.items()})
  store.flush()
  store.finish(output)


def measure(kind, rounds, examples, directory):
  """Returns contestant -> seconds of each round."""
  random = np.random.default_rng(0)
  x = random.standard_normal((examples, FEATURES), np.float32)
  y = random.integers(0, 10, examples)
  task = make_task(x, y)
  tftrain.export.export_model(task, tf.constant(x[:4]), directory / 'export')
  found = {'by hand': [], 'tftrain': []}
  for number in range(rounds + 1):
    hand = directory / f'hand-{number}.{kind}'
    begun = time.perf_counter()
    part = directory / str(number)
    by_hand(
      directory / 'export', x, _prediction_files.store_for(hand), part, hand
    )
    middle = time.perf_counter()
    data = tftrain.Arrays(x, BATCH_SIZE, training=False)
    ours = directory / f'ours-{number}.{kind}'
    predictor.predict(task, data, ours)
    end = time.perf_counter()
    if number:
      found['by hand'].append(middle - begun)
      found['tftrain'].append(end - middle)
    assert hand.read_bytes() == ours.read_bytes()
    hand.unlink()
    ours.unlink()
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--kind', choices=['jsonl', 'npz'], default='jsonl')
  parser.add_argument('--examples', type=int, default=240_000)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    found = measure(
      options.kind, options.rounds, options.examples, pathlib.Path(directory)
    )
  for name, seconds in found.items():
    rate = options.examples / statistics.median(seconds)
    print(f'{name:<8} {rate:12,.0f} examples/s')
  ratios = [
    hand / ours
    for hand, ours in zip(found['by hand'], found['tftrain'], strict=True)
  ]
  print(
    f'ratio {statistics.median(ratios):.2f} '
    f'({min(ratios):.2f} to {max(ratios):.2f})'
  )


if __name__ == '__main__':
  main()

"""Runs that must not depend on the number of replicas.

  python -m tests.support.replica_runs 4

prints, as JSON, what they give on so many parts of a CPU and on fewer;

  TF_CONFIG=... python -m tests.support.replica_runs workers

what they give on the workers that TF_CONFIG tells of.
"""

import functools
import json
import os
import sys

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import keras
import numpy as np
import sklearn.datasets

from tests.support import small_tasks
import tftrain
from tftrain.distribute import strategy as strategy_lib

_SPECIAL = ('loss_scale', 'seed', 'trainer/')


WORKERS = 'workers'


@functools.cache
def _workers():
  """The strategy of several workers; a process can have one."""
  return tftrain.make_strategy('multi_worker_mirrored')


def _trainer(make, data, replicas, **options):
  keras.utils.set_random_seed(3)
  if replicas is WORKERS:
    strategy = _workers()
  else:
    strategy = tftrain.make_strategy(
      'mirrored' if replicas > 1 else 'one_device', replicas=replicas
    )
  with strategy.scope():
    task = make()
  return tftrain.Trainer(task, data, strategy=strategy, log_every=1, **options)


def overflow(precision, replicas):
  """Step 3 of 6 has infinities in the last two of its eight rows."""

  def make():
    keras.config.set_dtype_policy(precision)
    try:
      # Adam would make a full step of a gradient that is a rounding error.
      return small_tasks.supervised(keras.optimizers.SGD(0.1, momentum=0.9))
    finally:
      keras.config.set_dtype_policy('float32')

  x, y = small_tasks.arrays(48)
  batches = [(x[i : i + 8].copy(), y[i : i + 8]) for i in range(0, 48, 8)]
  batches[2][0][6:, 1] = np.inf
  half = precision == 'mixed_float16'
  update = tftrain.Update(max_skips=0 if half else 2)
  trainer = _trainer(make, batches, replicas, update=update)
  seen = []
  for _ in trainer.steps(6):
    seen.append(small_tasks.state_of(trainer))
  weights = {
    name: value
    for name, value in seen[-1].items()
    if not any(word in name for word in _SPECIAL)
  }
  scales = [float(s.get('optimizer/loss_scale/scale', 0.0)) for s in seen]
  return {
    'replicas': trainer.strategy.num_replicas_in_sync,
    'finite': all(np.isfinite(v).all() for v in weights.values()),
    'kept': all(np.array_equal(seen[1][n], seen[2][n]) for n in weights),
    'moved': any(not np.array_equal(seen[2][n], seen[3][n]) for n in weights),
    'updates': [int(s['trainer/updates']) for s in seen],
    'skipped': [int(s['trainer/skipped_steps']) for s in seen],
    'scales': [scale / (scales[0] or 1.0) for scale in scales],
    'weights': np.concatenate(
      [np.ravel(weights[name]) for name in sorted(weights)]
    ).tolist(),
  }


def digits(replicas, dropout=0.0):
  """Losses of 50 steps, and of evaluations whose last batch is ragged."""
  x, y = sklearn.datasets.load_digits(return_X_y=True)
  x = (x / 16.0).reshape([-1, 8, 8, 1]).astype('float32')
  y = y.astype('int64')

  def make():
    # A bias here would have gradients of rounding errors alone, of which Adam
    # makes steps of full length.
    layers = [
      keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, use_bias=False),
      keras.layers.BatchNormalization(), keras.layers.ReLU(),
    ]  # fmt: skip
    layers += [keras.layers.Flatten(), keras.layers.Dropout(dropout)]
    return tftrain.SupervisedTask(
      keras.Sequential([*layers, keras.layers.Dense(10)]),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      keras.optimizers.AdamW(0.003),
      {'accuracy': keras.metrics.SparseCategoricalAccuracy()},
    )

  trainer = _trainer(
    make,
    tftrain.Arrays((x[:400], y[:400]), 32),
    replicas,
    update=tftrain.Update(clip_norm=1.0),
  )
  evaluator = tftrain.Evaluator(
    trainer.task,
    tftrain.Arrays((x[400:485], y[400:485]), 32, training=False),
    strategy=trainer.strategy,
  )
  losses = []
  for report in trainer.steps(50):
    losses.append(float(report.scalars['loss']))
    if report.step in (5, 50):
      losses.append(float(evaluator.evaluate()['loss']))
  return losses


def main(most):
  strategy_lib.set_local_devices(most)
  counts = [count for count in (1, 2, 4) if count <= most]
  found = {
    precision: [overflow(precision, count) for count in counts]
    for precision in ('mixed_float16', 'mixed_bfloat16')
  }
  found['digits'] = [digits(count) for count in counts]
  found['dropout'] = [digits(count, 0.3) for count in (most, most, 1)]
  print(json.dumps(found))


def of_workers():
  plain, one, again = (digits(WORKERS, dropout) for dropout in (0.0, 0.3, 0.3))
  print(json.dumps({'digits': plain, 'dropout': [one, again]}))


if __name__ == '__main__':
  of_workers() if sys.argv[1] == WORKERS else main(int(sys.argv[1]))

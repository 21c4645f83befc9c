"""Short runs of the programs in examples/."""

import functools

import keras
import numpy as np
import tensorflow as tf

from tests.support import small_tasks
import tftrain


def trainer_of(make_task, data, strategy=None, **options):
  strategy = strategy or tf.distribute.get_strategy()
  with strategy.scope():
    task = make_task()
  return tftrain.Trainer(task, data, strategy=strategy, **options)


def report_on(task, data, strategy=None):
  """The Report of one evaluation."""
  found = []
  evaluator = tftrain.Evaluator(
    task, data, strategy=strategy, actions=[found.append]
  )
  evaluator(small_tasks.report(1))
  (report,) = found
  return report


def adam(rate, **options):
  return functools.partial(keras.optimizers.Adam, rate, **options)


def unigram_entropy(codes):
  """Nats per character, for whoever knows only how frequent each is."""
  counts = np.bincount(codes[codes > 0])
  share = counts[counts > 0] / counts.sum()
  return -(share * np.log(share)).sum()


def trained(make_task, data, steps, **options):
  """A Task, and the last that its Trainer reported."""
  keras.utils.set_random_seed(0)
  trainer = tftrain.Trainer(make_task(), data, log_every=20, **options)
  return trainer.task, trainer.train(steps).scalars


def last_scalars(task, data, steps, **options):
  """What a Trainer reported last."""
  trainer = tftrain.Trainer(task, data, log_every=20, **options)
  return trainer.train(steps).scalars


def files_of(directory):
  return {path: path.stat().st_mtime_ns for path in directory.rglob('*.*')}

"""Predictions of a small task, read back and compared."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.evaluation import predictor


def make_task(kind=tftrain.SupervisedTask, batch=None):
  task = kind(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )
  task.build(batch or tuple(tf.constant(a[:4]) for a in small_tasks.arrays()))
  return task


def read(path):
  """Name -> array, of either kind."""
  if path.suffix == '.npz':
    with np.load(path, allow_pickle=False) as found:
      return dict(found)
  parsed = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row.pop('index') for row in parsed] == list(range(len(parsed)))
  return {name: np.array([row[name] for row in parsed]) for name in parsed[0]}


def expected(task, count):
  return task.serve(tf.constant(small_tasks.arrays(count)[0]))


def assert_predicts(task, data, output, count):
  assert predictor.predict(task, data, output) == count
  found = read(output)['outputs']
  assert found.shape == (count, 3)
  np.testing.assert_allclose(found, expected(task, count), rtol=0, atol=1e-6)
  assert not output.with_name(f'{output.name}.parts').exists()


def refused(kind, text):
  return pytest.raises(kind, match=text)

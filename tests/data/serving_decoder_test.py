"""The serving decoder: an export takes records as they were trained on."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import exported_models
from tests.support import small_tasks
import tftrain
from tftrain.export import signature


def _write(directory, rows=20):
  x, y = small_tasks.arrays(rows)
  rows = [
    {'raw': (r * 10).astype('float32'), 'label': n}
    for r, n in zip(x, y, strict=True)
  ]
  tftrain.data.write_records(directory / 'train', rows, shards=2)
  return tftrain.data.TFRecords(directory / 'train-*')


def _scaled(example):
  return {'image': example['raw'] / 10.0, 'label': example['label']}


def _serialized(**features):
  example = tf.train.Example()
  for name, value in features.items():
    if isinstance(value, int):
      example.features.feature[name].int64_list.value.append(value)
    else:
      example.features.feature[name].float_list.value.extend(value)
  return example.SerializeToString()


def assert_records_are_served(data, directory, factor):
  """The model of features times a factor; returns what was loaded."""
  task = exported_models.offering()
  _, loaded = exported_models.exported(
    task, directory, data, decoder=data.decoder()
  )
  x, _ = small_tasks.arrays(3)
  # No label: what does not matter for the outcome need not be there.
  records = [_serialized(raw=row * 10) for row in x]
  outputs = exported_models.served(loaded, signature.RECORDS, examples=records)[
    'outputs'
  ]
  expected = task.model(x * factor)
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
  return loaded


@pytest.mark.slow
@pytest.mark.parametrize('mapped', [_scaled, None])
def test_records_are_served_as_they_were_trained(mapped, tmp_path):
  names = ('image', 'label') if mapped else ('raw', 'label')
  data = tftrain.data.Examples(
    _write(tmp_path / 'data'), 8, map=mapped, select=names, training=False
  )
  loaded = assert_records_are_served(data, tmp_path, 1 if mapped else 10)
  with pytest.raises(tf.errors.InvalidArgumentError, match='raw'):
    exported_models.served(
      loaded, signature.RECORDS, examples=[_serialized(label=1)]
    )


@pytest.mark.slow
def test_a_map_by_chance_and_map_batch_are_in_it_too(tmp_path):
  def noisy(example, seed):
    noise = tf.random.stateless_uniform([6], seed)
    return {**_scaled(example), 'noise': noise}

  def finish(batch):
    return batch['image'] * 2.0 + 0.0 * batch['noise'], batch['label']

  data = tftrain.data.Examples(
    _write(tmp_path / 'data'), 8, map=noisy, map_batch=finish, training=False
  )
  assert_records_are_served(data, tmp_path, 2)

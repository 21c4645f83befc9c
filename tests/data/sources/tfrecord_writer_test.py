"""write_records: every dtype comes back; failures leave nothing."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tftrain
from tftrain import errors
from tftrain.data.sources import feature_spec


@pytest.mark.parametrize('compression', ['', 'GZIP', 'ZLIB'])
def test_every_dtype_comes_back_bit_by_bit(compression, tmp_path):
  drawn = np.random.RandomState(0)
  spec, examples = {}, [{} for _ in range(5)]
  for name in (
    *feature_spec._AS_INT64,
    *feature_spec._AS_BYTES,
    'int64',
    'float32',
  ):
    kind = tf.as_dtype(name)
    numpy = kind.as_numpy_dtype
    for suffix, shape in (('', ()), ('[2,3]', (2, 3))):
      spec[name + suffix] = name + suffix
      for one in examples:
        if kind.is_floating:
          value = drawn.normal(size=shape).astype(numpy)
        elif kind == tf.bool:
          value = drawn.randint(0, 2, shape).astype(bool)
        else:
          value = drawn.randint(kind.min, kind.max, shape, np.dtype(numpy))
          value = np.asarray(value, numpy)
        one[name + suffix] = np.asarray(value)
  extremes = {'uint64': [0, 2**64 - 1], 'int64': [-(2**63), 2**63 - 1]}
  for name, values in extremes.items():
    spec[f'{name}[2]'] = f'{name}[2]'
    for one in examples:
      one[f'{name}[2]'] = np.array(values, name)
  spec['float32[3]'] = 'float32[3]'
  spec['text'], spec['texts'] = 'string', 'string[2]'
  for number, one in enumerate(examples):
    one['float32[3]'] = np.array([np.nan, np.inf, -0.0], 'float32')
    one['text'] = f'é{number}'
    one['texts'] = [b'\x00\xff', b'']
  tftrain.data.write_records(
    tmp_path / 'all', examples, spec, shards=1, compression=compression
  )
  pipeline = tftrain.data.Examples(
    tftrain.data.TFRecords(tmp_path / 'all-*'), 5, training=False
  )
  (batch,) = pipeline.peek()
  assert set(batch) == set(spec)
  for name in spec:
    if name.startswith('text'):
      continue
    expected = np.stack([one[name] for one in examples])
    assert batch[name].dtype == expected.dtype, name
    assert batch[name].tobytes() == expected.tobytes(), name
  assert batch['text'].tolist() == [f'é{n}'.encode() for n in range(5)]
  assert batch['texts'].tolist() == [[b'\x00\xff', b'']] * 5


def test_lengths_that_vary_come_back(tmp_path):
  spec = {
    'ids': 'int64[?]',
    'steps': 'float32[?,3]',
    'words': 'string[?]',
    'small': 'int16[?]',
  }
  examples = [
    {
      'ids': np.arange(n),
      'steps': np.arange(3.0 * n).reshape(n, 3).astype('float32'),
      'words': np.array([f'w{i}' for i in range(n)], object),
      'small': np.arange(n).astype('int16'),
    }
    for n in (3, 0, 5, 1)
  ]
  tftrain.data.write_records(tmp_path / 'all', examples, spec, shards=1)
  (batch,) = tftrain.data.Examples(
    tftrain.data.TFRecords(tmp_path / 'all-*'),
    4,
    batcher=tftrain.data.Ragged(),
    training=False,
  ).peek()
  assert batch['small'].dtype == tf.int16
  for name in spec:
    expected = [one[name].tolist() for one in examples]
    found = batch[name].to_list()
    if name == 'words':
      found = [[word.decode() for word in words] for words in found]
    assert found == expected, name


def test_written_features_are_those_of_the_first_example(tmp_path):
  image = np.zeros([4, 4, 1], 'uint8')
  paths = tftrain.data.write_records(
    tmp_path / 'train',
    ({'image': image + n, 'label': n, 'name': 'a'} for n in range(9)),
    shards=2,
  )
  assert [path.name for path in paths] == [
    'train-00000-of-00002.tfrecord',
    'train-00001-of-00002.tfrecord',
  ]
  said = json.loads((tmp_path / 'features.json').read_text())
  assert said['features'] == {
    'image': 'uint8[4,4,1]',
    'label': 'int64',
    'name': 'string',
  }
  assert [said['files'][path.name]['records'] for path in paths] == [5, 4]
  assert all(
    said['files'][path.name]['bytes'] == path.stat().st_size for path in paths
  )


def test_a_dataset_may_be_written_and_other_files_stay_known(tmp_path):
  dataset = tf.data.Dataset.from_tensor_slices({'number': np.arange(6)})
  tftrain.data.write_records(tmp_path / 'train', dataset, shards=2)
  tftrain.data.write_records(tmp_path / 'test', dataset.take(3), shards=1)
  said = json.loads((tmp_path / 'features.json').read_text())
  assert len(said['files']) == 3
  assert tftrain.data.TFRecords(tmp_path / 'train-*').num_examples == 6
  assert tftrain.data.TFRecords(tmp_path / 'test-*').num_examples == 3
  assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
  examples = [{'x': [1, 2]}, {'x': [1, 2, 3]}]
  with pytest.raises(errors.InputError, match='example 1: x is int64.3., exp'):
    tftrain.data.write_records(tmp_path / 'train', examples, shards=1)
  assert not list(tmp_path.glob('*train*'))
  with pytest.raises(errors.InputError, match='0 examples to write'):
    tftrain.data.write_records(tmp_path / 'train', [])
  with pytest.raises(errors.InputError, match='do not fill 8 shards.*shards=2'):
    tftrain.data.write_records(tmp_path / 'train', examples[:1] * 2)
  assert not list(tmp_path.glob('*train*'))
  tftrain.data.write_records(tmp_path / 'a', examples[:1], shards=1)
  with pytest.raises(errors.InputError, match='another directory'):
    tftrain.data.write_records(tmp_path / 'b', [{'y': 1}], shards=1)
  for wrong in ({'shards': 0}, {'compression': 'ZIP'}):
    with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
      tftrain.data.write_records(tmp_path / 'a', examples[:1], **wrong)

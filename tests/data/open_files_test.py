"""Files named by a user: read like the data of the run."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import predictions
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.evaluation import predictor


@pytest.fixture(scope='module')
def task():
  keras.utils.set_random_seed(0)
  return predictions.make_task()


def doubled(example):
  return {**example, 'x': example['x'] * 2.0}


@pytest.fixture
def like(tmp_path):
  """Training data of columns, with a map, shuffled and repeated."""
  x, y = small_tasks.arrays(30, seed=3)
  rows = [{'x': a, 'y': b} for a, b in zip(x, y, strict=True)]
  tftrain.data.write_records(tmp_path / 'train', rows, shards=2)
  return tftrain.data.Examples(
    tftrain.data.TFRecords(tmp_path / 'train-*'),
    8,
    map=doubled,
    select=('x', 'y'),
    holdout=0.3,
    remainder='drop',
  )


def write_records(path, x, y):
  rows = [{'x': a, 'y': b} for a, b in zip(x, y, strict=True)]
  tftrain.data.write_records(path / 'other' / 'new', rows, shards=1)
  return path / 'other' / 'new-*.tfrecord'


def write_jsonl(path, x, y):
  rows = [
    json.dumps({'x': a.tolist(), 'y': int(b)})
    for a, b in zip(x, y, strict=True)
  ]
  (path / 'new.jsonl').write_text('\n'.join(rows) + '\n')
  return path / 'new.jsonl'


def write_npy(path, x, y):
  np.save(path / 'new.npy', x)
  return path / 'new.npy'


def write_npz(path, x, y):
  np.savez(path / 'new.npz', x=x)
  return path / 'new.npz'


@pytest.mark.parametrize(
  'write', [write_records, write_jsonl, write_npy, write_npz]
)
def test_files_are_read_like_the_data_of_the_run(task, like, write, tmp_path):
  x, y = small_tasks.arrays(19)
  data = tftrain.data.open_input(write(tmp_path, x, y), like)
  assert data.num_examples == 19 and not data.repeats
  output = tmp_path / 'a.npz'
  assert predictor.predict(task, data, output) == 19
  np.testing.assert_allclose(
    predictions.read(output)['outputs'],
    task.serve(tf.constant(2 * x)),
    rtol=0,
    atol=1e-5,
  )


def test_csv_is_read_like_the_data_of_the_run(task, tmp_path):
  def write(name, count, seed):
    x, y = small_tasks.arrays(count, seed=seed)
    text = 'a,b,c,d,e,f,y,more\n' + ''.join(
      ','.join(map(repr, map(float, row))) + f',{label},0\n'
      for row, label in zip(x, y, strict=True)
    )
    (tmp_path / name).write_text(text)
    return x

  def stacked(batch):
    return tf.stack([batch[name] for name in 'abcdef'], -1), batch['y']

  write('train.csv', 30, 1)
  features = {**dict.fromkeys('abcdef', 'float32'), 'y': 'int64'}
  source = tftrain.data.Csv(tmp_path / 'train.csv', features)
  like = tftrain.data.Examples(source, 8, map_batch=stacked)
  x = write('new.csv', 11, 2)
  data = tftrain.data.open_input(tmp_path / 'new.csv', like)
  predictor.predict(task, data, tmp_path / 'a.npz')
  np.testing.assert_allclose(
    predictions.read(tmp_path / 'a.npz')['outputs'],
    task.serve(tf.constant(x)),
    rtol=0,
    atol=1e-5,
  )


@pytest.mark.parametrize('write', [write_npy, write_npz])
def test_arrays_are_read_like_arrays(task, write, tmp_path):
  x, y = small_tasks.arrays(19)
  like = tftrain.Arrays(small_tasks.arrays(), 8)
  data = tftrain.data.open_input(write(tmp_path, x, y), like)
  predictions.assert_predicts(task, data, tmp_path / 'a.jsonl', 19)


def test_buckets_become_padded_batches(tmp_path):
  ids = tf.ragged.constant([[1] * n for n in (3, 1, 2, 1)], dtype=tf.int64)
  like = tftrain.data.Examples(
    tftrain.data.InMemory({'ids': ids}),
    2,
    batcher=tftrain.data.Bucketed([2, 4]),
  )
  batches = like.over(tftrain.data.InMemory({'ids': ids})).peek(9)
  assert [batch['ids'].tolist() for batch in batches] == [
    [[1, 1, 1], [1, 0, 0]],
    [[1, 1], [1, 0]],
  ]


def test_over_leaves_the_other_as_it_was(like):
  other = like.over(
    tftrain.data.InMemory(dict(zip('xy', small_tasks.arrays(5), strict=True)))
  )
  assert other.num_examples == 5 and other.num_steps == 1
  assert like.repeats and like.num_examples != 5
  assert len(like.peek(2)[0][0]) == 8


@pytest.mark.parametrize(
  ('name', 'content', 'text'),
  [
    ('a.png', b'x', 'unknown kind; there are .tfrecord, .csv, .jsonl, .npy'),
    ('a.npy', b'x', 'a.npy cannot be read'),
    ('a.npy', np.zeros([4, 5], np.float32), r'shape \[4, 5\]; .* \[6\]'),
    ('a.npy', np.zeros([4, 6]), 'dtype float64, in this run it is float32'),
    ('a.npz', {'z': np.zeros(4)}, "has no 'x'; it has z"),
    ('a.jsonl', b'{"x": [0, 0, 0, 0, 0, 0]}\n', "line 1: has no 'y'"),
    ('a.csv', b'p,q\n1,2\n', "no column 'x'"),
    ('missing.npy', None, 'no file matches'),
  ],
)
def test_files_that_do_not_do(like, name, content, text, tmp_path):
  path = tmp_path / name
  if isinstance(content, dict):
    np.savez(path, **content)
  elif isinstance(content, np.ndarray):
    np.save(path, content)
  elif content is not None:
    path.write_bytes(content)
  with predictions.refused(errors.InputError, text):
    tftrain.data.open_input(path, like)


def test_records_need_examples_to_be_read_like(like, tmp_path):
  with predictions.refused(
    errors.InputError, 'Arrays, which does not say how to read'
  ):
    tftrain.data.open_input(
      tmp_path / 'train-*.tfrecord', tftrain.Arrays(small_tasks.arrays(), 8)
    )


def test_kinds_are_not_mixed(like, tmp_path):
  write_npy(tmp_path, *small_tasks.arrays(5))
  write_npz(tmp_path, *small_tasks.arrays(5))
  with predictions.refused(
    errors.InputError, 'are of different kinds, .npy and .npz'
  ):
    tftrain.data.open_input(tmp_path / 'new.*', like)

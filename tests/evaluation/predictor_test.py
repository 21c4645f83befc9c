"""Predictions: all examples, in order, to the bit, whatever is killed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
from tests import predict_child
import tftrain
from tftrain import errors
from tftrain.distribute import strategy as strategy_lib
from tftrain.evaluation import _prediction_files
from tftrain.evaluation import predictor
from tftrain.platform import files
from tftrain.platform import lock
from tftrain.train import counters as counters_lib

_ROOT = pathlib.Path(__file__).parent.parent


class Named(tftrain.SupervisedTask):
  """Outputs by name, of several dtypes and ranks."""

  def serve(self, features):
    logits = self.model(features, training=False)
    label = tf.argmax(logits, -1)
    return {
      'logits': logits,
      'label': label,
      'grid': tf.reshape(logits[:, :2], [-1, 1, 2]),
      'half': tf.cast(logits, tf.bfloat16),
      'text': tf.strings.as_string(label),
    }


def make_task(kind=tftrain.SupervisedTask, batch=None):
  task = kind(
    cases.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )
  task.build(batch or tuple(tf.constant(a[:4]) for a in cases.arrays()))
  return task


@pytest.fixture(scope='module')
def task():
  keras.utils.set_random_seed(0)
  return make_task()


@pytest.fixture(scope='module')
def named():
  keras.utils.set_random_seed(0)
  return make_task(Named)


def arrays(examples, batch_size=8):
  return tftrain.Arrays(cases.arrays(examples), batch_size, training=False)


def examples(count, **options):
  x, y = cases.arrays(count)
  return tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'y': y}),
    8,
    training=False,
    select=('x', 'y'),
    **options,
  )


def read(path):
  """Name -> array, of either kind."""
  if path.suffix == '.npz':
    with np.load(path, allow_pickle=False) as found:
      return dict(found)
  parsed = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row.pop('index') for row in parsed] == list(range(len(parsed)))
  return {name: np.array([row[name] for row in parsed]) for name in parsed[0]}


def expected(task, count):
  return task.serve(tf.constant(cases.arrays(count)[0]))


def assert_predicts(task, data, output, count):
  assert predictor.predict(task, data, output) == count
  found = read(output)['outputs']
  assert found.shape == (count, 3)
  np.testing.assert_allclose(found, expected(task, count), rtol=0, atol=1e-6)
  assert not output.with_name(f'{output.name}.parts').exists()


def some(values, quick):
  """Parameters of which only a few are in the default suite."""
  slow = pytest.mark.slow
  return [pytest.param(v, marks=() if v in quick else slow) for v in values]


SUFFIXES = pytest.mark.parametrize('suffix', ['.jsonl', '.npz'])


@SUFFIXES
@pytest.mark.parametrize('count', some(range(1, 18), (1, 8, 17)))
def test_any_remainder(task, count, suffix, tmp_path):
  assert_predicts(task, arrays(count), tmp_path / f'a{suffix}', count)


@SUFFIXES
@pytest.mark.parametrize('count', some([1, 7, 8, 9, 17], (9,)))
@pytest.mark.parametrize('remainder', ['keep', 'pad'])
def test_fillers_are_not_written(task, count, remainder, suffix, tmp_path):
  data = examples(count, remainder=remainder)
  assert_predicts(task, data, tmp_path / f'a{suffix}', count)


def test_fillers_are_told_from_weights_where_the_number_is_unknown(
  task, tmp_path
):
  data = examples(17, remainder='pad', filter=lambda example: example['y'] < 9)
  assert data.num_examples is None
  assert_predicts(task, data, tmp_path / 'a.jsonl', 17)


def test_rows_of_weight_zero_are_examples(task, tmp_path):
  x, y = cases.arrays(11)
  source = tftrain.data.InMemory(
    {'x': x, 'y': y, 'w': np.zeros(11, np.float32)}
  )
  data = tftrain.data.Examples(
    source, 8, training=False, select=('x', 'y', 'w'), remainder='pad'
  )
  assert_predicts(task, data, tmp_path / 'a.jsonl', 11)


def test_batches_of_any_size(task, tmp_path):
  x, y = cases.arrays(20)
  cuts = [(0, 3), (3, 11), (11, 20)]
  data = [(x[a:b], y[a:b]) for a, b in cuts]
  assert_predicts(task, data, tmp_path / 'a.jsonl', 20)


@SUFFIXES
def test_outputs_by_name(named, suffix, tmp_path):
  output = tmp_path / f'a{suffix}'
  predictor.predict(named, arrays(19), output)
  found, wanted = read(output), expected(named, 19)
  assert list(found) == list(wanted)
  for name in ('logits', 'label', 'grid', 'half'):
    value = wanted[name].numpy().astype(np.float64)
    assert found[name].shape == value.shape
    tolerance = 0.05 if name == 'half' else 1e-6
    np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance)
  assert found['text'].astype(str).tolist() == [
    text.decode() for text in wanted['text'].numpy()
  ]


def test_both_kinds_hold_the_same_bits(task, tmp_path):
  for name in ('a.jsonl', 'a.npz'):
    predictor.predict(task, arrays(19), tmp_path / name)
  lines = read(tmp_path / 'a.jsonl')['outputs']
  np.testing.assert_array_equal(
    lines.astype(np.float32), read(tmp_path / 'a.npz')['outputs']
  )


@pytest.mark.parametrize(
  ('array', 'texts'),
  [
    (np.array([1.5, np.nan, -np.inf]), ['1.5', '"nan"', '"-inf"']),
    (np.array([[1.0, np.inf]]), ['[1.0, "inf"]']),
    (np.array([[1, 2], [3, 4]]), ['[1, 2]', '[3, 4]']),
    (np.array([True, False]), ['true', 'false']),
    (np.array([b'a', b'\xff'], object), ['"a"', '"\\\\xff"']),
    (np.array([[[1.0]], [[2.0]]]), ['[[1.0]]', '[[2.0]]']),
    (np.zeros([2, 0]), ['[]', '[]']),
  ],
)
def test_lines_are_strict_json(array, texts):
  assert _prediction_files.lines(7, {'a': array}) == [
    f'{{"index": {index}, "a": {text}}}' for index, text in enumerate(texts, 7)
  ]


def test_averages_take_the_place_of_weights(tmp_path):
  task = cases.supervised(keras.optimizers.SGD(0.5))
  update = tftrain.Update(ema=0.9)
  data = tftrain.Arrays(cases.arrays(), 8)
  tftrain.Trainer(task, data, update=update).train(20)
  live = expected(task, 9).numpy()
  with task.averaged():
    wanted = expected(task, 9).numpy()
  assert np.abs(live - wanted).max() > 1e-3
  predictor.predict(task, arrays(9), tmp_path / 'a.npz')
  found = read(tmp_path / 'a.npz')['outputs']
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(expected(task, 9), live)


def test_under_a_strategy_of_two_replicas(tmp_path):
  strategy = strategy_lib.make_strategy('mirrored', replicas=2)
  with strategy.scope():
    task = make_task()
  output = tmp_path / 'a.npz'
  assert predictor.predict(task, arrays(11), output, strategy=strategy) == 11
  np.testing.assert_allclose(
    read(output)['outputs'], expected(task, 11), rtol=0, atol=1e-6
  )


# Going on.


def test_a_whole_output_is_left_alone(task, tmp_path):
  output = tmp_path / 'a.jsonl'
  predictor.predict(task, arrays(11), output)
  before = output.stat()
  assert predictor.predict(task, arrays(11), output) == 11
  assert output.stat() == before
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'a.jsonl',
    'a.jsonl.origin.json',
  ]


@SUFFIXES
def test_a_stop_ends_it_and_a_later_call_goes_on(task, suffix, tmp_path):
  whole, output = tmp_path / f'whole{suffix}', tmp_path / f'a{suffix}'
  predictor.predict(task, arrays(43), whole)

  class Stop:
    left = 3

    def numpy(self):
      self.left -= 1
      return counters_lib.RUN if self.left >= 0 else counters_lib.STOP

  stopped = predictor.predict(task, arrays(43), output, stop=Stop())
  assert stopped is None and not output.exists()
  assert predictor.predict(task, arrays(43), output) == 43
  assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('kept', some(range(0, 3000, 331), (993,)))
@pytest.mark.parametrize('kind', ['arrays', 'filtered', 'batches'])
def test_lines_cut_anywhere(task, kept, kind, tmp_path):
  """Half a line is dropped, half a batch is completed."""

  def data():
    if kind == 'arrays':
      return arrays(43)
    if kind == 'filtered':
      return examples(43, filter=lambda example: example['y'] != 1)
    x, y = cases.arrays(43)
    ends = [0, 5, 16, 17, 40, 43]
    return [(x[a:b], y[a:b]) for a, b in zip(ends, ends[1:], strict=False)]

  whole, output = tmp_path / 'whole.jsonl', tmp_path / 'a.jsonl'
  predictor.predict(task, data(), whole)
  (tmp_path / 'a.jsonl.parts').mkdir()
  part = tmp_path / 'a.jsonl.parts' / 'lines.jsonl'
  part.write_bytes(whole.read_bytes()[:kept])
  (tmp_path / 'a.jsonl.origin.json').write_bytes(
    (tmp_path / 'whole.jsonl.origin.json').read_bytes()
  )
  assert predictor.predict(task, data(), output) == len(
    whole.read_bytes().splitlines()
  )
  assert output.read_bytes() == whole.read_bytes()


@pytest.fixture(scope='module')
def server():
  process = subprocess.Popen(
    [sys.executable, 'tests/predict_child.py'],
    cwd=_ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  yield process
  process.stdin.close()
  process.wait()


def _begin(server, output, seconds):
  server.stdin.write(f'{seconds} {output}\n')
  server.stdin.flush()
  return int(server.stdout.readline())


def _progress(parts):
  """Something that grows as more is written."""
  return sum(path.stat().st_size for path in parts.glob('[0-9l]*'))


@pytest.mark.slow
@SUFFIXES
def test_killed_at_any_instant_it_ends_the_same(server, suffix, tmp_path):
  keras.utils.set_random_seed(0)
  whole, output = tmp_path / f'whole{suffix}', tmp_path / f'a{suffix}'
  predictor.predict(predict_child.make_task(), predict_child.data(), whole)
  parts = tmp_path / f'a{suffix}.parts'
  chance = random.Random(0)
  seen = []
  for _ in range(4):
    before = _progress(parts)
    pid = _begin(server, output, 0.1)
    until = time.monotonic() + 60
    while _progress(parts) <= before and time.monotonic() < until:
      time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.2))
    os.kill(pid, signal.SIGKILL)
    assert server.stdout.readline() == 'ended\n'
    assert not output.exists()
    seen.append(_progress(parts))
  assert seen == sorted(set(seen))  # each got on
  _begin(server, output, 0)
  assert server.stdout.readline() == 'ended\n'
  assert output.read_bytes() == whole.read_bytes()
  assert not parts.exists()


# What is refused.


def refused(kind, text):
  return pytest.raises(kind, match=text)


@pytest.fixture
def done(task, tmp_path):
  predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')
  return tmp_path / 'a.jsonl'


def test_an_output_of_other_data(task, done):
  with refused(
    errors.RunDirectoryError, 'other data: examples is 12 now, it was 11'
  ):
    predictor.predict(task, arrays(12), done)


def test_an_output_of_other_weights(done):
  keras.utils.set_random_seed(1)
  with refused(errors.RunDirectoryError, 'other weights; remove it, or name'):
    predictor.predict(make_task(), arrays(11), done)


def test_an_output_of_another_step(task, tmp_path):
  output = tmp_path / 'a.jsonl'
  predictor.predict(task, arrays(11), output, origin={'step': 10})
  with refused(
    errors.RunDirectoryError, 'other origin: step is 20 now, it was 10'
  ):
    predictor.predict(task, arrays(11), output, origin={'step': 20})


def test_a_part_of_other_data(task, tmp_path):
  class Now:
    def numpy(self):
      return (
        counters_lib.STOP
        if (parts / 'lines.jsonl').exists()
        else counters_lib.RUN
      )

  output, parts = tmp_path / 'a.jsonl', tmp_path / 'a.jsonl.parts'
  assert predictor.predict(task, arrays(9999), output, stop=Now()) is None
  with refused(errors.RunDirectoryError, 'a.jsonl.parts was made of other'):
    predictor.predict(task, arrays(12), output)


def test_an_output_of_nobody_knows_what(task, tmp_path):
  (tmp_path / 'a.jsonl').write_text('mine\n')
  with refused(errors.RunDirectoryError, 'exists, and no a.jsonl.origin.json'):
    predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')
  assert (tmp_path / 'a.jsonl').read_text() == 'mine\n'


def test_an_output_that_another_writes(task, tmp_path):
  parts = tmp_path / 'a.jsonl.parts'
  parts.mkdir()
  with lock.lock(parts):
    with refused(errors.RunDirectoryError, 'in use .* choose another output'):
      predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')


def test_another_ending(task, tmp_path):
  with refused(errors.ConfigError, 'ends in neither .jsonl nor .npz'):
    predictor.predict(task, arrays(11), tmp_path / 'a.csv')


def test_a_task_that_is_not_built(tmp_path):
  with refused(errors.TaskError, 'SupervisedTask is not built'):
    predictor.predict(cases.supervised(), arrays(11), tmp_path / 'a.jsonl')


@pytest.mark.parametrize(
  ('data', 'text'),
  [
    (lambda: tftrain.Arrays(cases.arrays(), 8), 'never ends'),
    (lambda: examples(11, remainder='drop'), 'the last 3 examples'),
    (
      lambda: tftrain.data.Examples(
        tftrain.data.InMemory({'x': tf.ragged.constant([[1], [1, 2]])}),
        2,
        training=False,
        batcher=tftrain.data.Bucketed([2]),
      ),
      'do not keep the order',
    ),
    (
      lambda: tftrain.Arrays(cases.arrays(features=5), 8, training=False),
      r'predict, batch 0: serve\(\) of SupervisedTask cannot take it',
    ),
  ],
)
def test_data_that_does_not_do(task, data, text, tmp_path):
  with refused(errors.InputError, text):
    predictor.predict(task, data(), tmp_path / 'a.jsonl')


@pytest.mark.parametrize(
  ('serve', 'text'),
  [
    (lambda x: tf.reduce_sum(x), "'outputs' as float32"),
    (lambda x: {'a': [x, x]}, "'a' as a list"),
    (lambda x: x[:3], 'of shape .* for 8 examples'),
    (lambda x: {'index': x}, "an output called 'index'"),
  ],
)
def test_outputs_that_do_not_do(serve, text, tmp_path):
  task = make_task()
  task.serve = serve
  with refused(errors.TaskError, text):
    predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')


def test_arrays_of_varying_shape(task, tmp_path):
  task = make_task()
  task.serve = lambda x: tf.ones([tf.shape(x)[0], tf.shape(x)[0]])
  with refused(errors.TaskError, 'write .jsonl, or make the shapes equal'):
    predictor.predict(task, arrays(11), tmp_path / 'a.npz')
  assert predictor.predict(task, arrays(11), tmp_path / 'a.jsonl') == 11


def test_a_disk_that_is_full_ends_it(task, tmp_path, monkeypatch):
  def full(path, content):
    raise OSError(28, os.strerror(28), str(path))

  monkeypatch.setattr(files.disk, 'append', full)
  with refused(errors.RunDirectoryError, 'No space left on device'):
    predictor.predict(task, arrays(9999), tmp_path / 'a.jsonl')


# Files as inputs.


def doubled(example):
  return {**example, 'x': example['x'] * 2.0}


@pytest.fixture
def like(tmp_path):
  """Training data of columns, with a map, shuffled and repeated."""
  x, y = cases.arrays(30, seed=3)
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
  x, y = cases.arrays(19)
  data = tftrain.data.open_input(write(tmp_path, x, y), like)
  assert data.num_examples == 19 and not data.repeats
  output = tmp_path / 'a.npz'
  assert predictor.predict(task, data, output) == 19
  np.testing.assert_allclose(
    read(output)['outputs'], task.serve(tf.constant(2 * x)), rtol=0, atol=1e-5
  )


def test_csv_is_read_like_the_data_of_the_run(task, tmp_path):
  def write(name, count, seed):
    x, y = cases.arrays(count, seed=seed)
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
    read(tmp_path / 'a.npz')['outputs'],
    task.serve(tf.constant(x)),
    rtol=0,
    atol=1e-5,
  )


@pytest.mark.parametrize('write', [write_npy, write_npz])
def test_arrays_are_read_like_arrays(task, write, tmp_path):
  x, y = cases.arrays(19)
  like = tftrain.Arrays(cases.arrays(), 8)
  data = tftrain.data.open_input(write(tmp_path, x, y), like)
  assert_predicts(task, data, tmp_path / 'a.jsonl', 19)


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
    tftrain.data.InMemory(dict(zip('xy', cases.arrays(5), strict=True)))
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
  with refused(errors.InputError, text):
    tftrain.data.open_input(path, like)


def test_records_need_examples_to_be_read_like(like, tmp_path):
  with refused(errors.InputError, 'Arrays, which does not say how to read'):
    tftrain.data.open_input(
      tmp_path / 'train-*.tfrecord', tftrain.Arrays(cases.arrays(), 8)
    )


def test_kinds_are_not_mixed(like, tmp_path):
  write_npy(tmp_path, *cases.arrays(5))
  write_npz(tmp_path, *cases.arrays(5))
  with refused(errors.InputError, 'are of different kinds, .npy and .npz'):
    tftrain.data.open_input(tmp_path / 'new.*', like)

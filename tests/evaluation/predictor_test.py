"""Predictor: all examples, in order, to the bit, through kills and restarts."""

import os
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import paths
from tests.support import predict_server
from tests.support import predictions
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.distribute import strategy as strategy_lib
from tftrain.evaluation import _prediction_files
from tftrain.evaluation import predictor
from tftrain.platform import files
from tftrain.platform import lock
from tftrain.train import counters as counters_lib


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


@pytest.fixture(scope='module')
def task():
  keras.utils.set_random_seed(0)
  return predictions.make_task()


@pytest.fixture(scope='module')
def named():
  keras.utils.set_random_seed(0)
  return predictions.make_task(Named)


def arrays(examples, batch_size=8):
  return tftrain.Arrays(
    small_tasks.arrays(examples), batch_size, training=False
  )


def examples(count, **options):
  x, y = small_tasks.arrays(count)
  return tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'y': y}),
    8,
    training=False,
    select=('x', 'y'),
    **options,
  )


def some(values, quick):
  """Parameters of which only a few are in the default suite."""
  slow = pytest.mark.slow
  return [pytest.param(v, marks=() if v in quick else slow) for v in values]


SUFFIXES = pytest.mark.parametrize('suffix', ['.jsonl', '.npz'])


@SUFFIXES
@pytest.mark.parametrize('count', some(range(1, 18), (1, 8, 17)))
def test_any_remainder(task, count, suffix, tmp_path):
  predictions.assert_predicts(
    task, arrays(count), tmp_path / f'a{suffix}', count
  )


@SUFFIXES
@pytest.mark.parametrize('count', some([1, 7, 8, 9, 17], (9,)))
@pytest.mark.parametrize('remainder', ['keep', 'pad'])
def test_fillers_are_not_written(task, count, remainder, suffix, tmp_path):
  data = examples(count, remainder=remainder)
  predictions.assert_predicts(task, data, tmp_path / f'a{suffix}', count)


def test_fillers_are_told_from_weights_where_the_number_is_unknown(
  task, tmp_path
):
  data = examples(17, remainder='pad', filter=lambda example: example['y'] < 9)
  assert data.num_examples is None
  predictions.assert_predicts(task, data, tmp_path / 'a.jsonl', 17)


def test_rows_of_weight_zero_are_examples(task, tmp_path):
  x, y = small_tasks.arrays(11)
  source = tftrain.data.InMemory(
    {'x': x, 'y': y, 'w': np.zeros(11, np.float32)}
  )
  data = tftrain.data.Examples(
    source, 8, training=False, select=('x', 'y', 'w'), remainder='pad'
  )
  predictions.assert_predicts(task, data, tmp_path / 'a.jsonl', 11)


def test_batches_of_any_size(task, tmp_path):
  x, y = small_tasks.arrays(20)
  cuts = [(0, 3), (3, 11), (11, 20)]
  data = [(x[a:b], y[a:b]) for a, b in cuts]
  predictions.assert_predicts(task, data, tmp_path / 'a.jsonl', 20)


@SUFFIXES
def test_outputs_by_name(named, suffix, tmp_path):
  output = tmp_path / f'a{suffix}'
  predictor.predict(named, arrays(19), output)
  found, wanted = predictions.read(output), predictions.expected(named, 19)
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
  lines = predictions.read(tmp_path / 'a.jsonl')['outputs']
  np.testing.assert_array_equal(
    lines.astype(np.float32), predictions.read(tmp_path / 'a.npz')['outputs']
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
  task = small_tasks.supervised(keras.optimizers.SGD(0.5))
  update = tftrain.Update(ema=0.9)
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  tftrain.Trainer(task, data, update=update).train(20)
  live = predictions.expected(task, 9).numpy()
  with task.averaged():
    wanted = predictions.expected(task, 9).numpy()
  assert np.abs(live - wanted).max() > 1e-3
  predictor.predict(task, arrays(9), tmp_path / 'a.npz')
  found = predictions.read(tmp_path / 'a.npz')['outputs']
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
  np.testing.assert_array_equal(predictions.expected(task, 9), live)


def test_under_a_strategy_of_two_replicas(tmp_path):
  strategy = strategy_lib.make_strategy('mirrored', replicas=2)
  with strategy.scope():
    task = predictions.make_task()
  output = tmp_path / 'a.npz'
  assert predictor.predict(task, arrays(11), output, strategy=strategy) == 11
  np.testing.assert_allclose(
    predictions.read(output)['outputs'],
    predictions.expected(task, 11),
    rtol=0,
    atol=1e-6,
  )


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
    x, y = small_tasks.arrays(43)
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
    [sys.executable, '-m', 'tests.support.predict_server'],
    cwd=paths.ROOT,
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
  predictor.predict(predict_server.make_task(), predict_server.data(), whole)
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


@pytest.fixture
def done(task, tmp_path):
  predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')
  return tmp_path / 'a.jsonl'


def test_an_output_of_other_data(task, done):
  with predictions.refused(
    errors.RunDirectoryError, 'other data: examples is 12 now, it was 11'
  ):
    predictor.predict(task, arrays(12), done)


def test_an_output_of_other_weights(done):
  keras.utils.set_random_seed(1)
  with predictions.refused(
    errors.RunDirectoryError, 'other weights; remove it, or name'
  ):
    predictor.predict(predictions.make_task(), arrays(11), done)


def test_an_output_of_another_step(task, tmp_path):
  output = tmp_path / 'a.jsonl'
  predictor.predict(task, arrays(11), output, origin={'step': 10})
  with predictions.refused(
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
  with predictions.refused(
    errors.RunDirectoryError, 'a.jsonl.parts was made of other'
  ):
    predictor.predict(task, arrays(12), output)


def test_an_output_of_nobody_knows_what(task, tmp_path):
  (tmp_path / 'a.jsonl').write_text('mine\n')
  with predictions.refused(
    errors.RunDirectoryError, 'exists, and no a.jsonl.origin.json'
  ):
    predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')
  assert (tmp_path / 'a.jsonl').read_text() == 'mine\n'


def test_an_output_that_another_writes(task, tmp_path):
  parts = tmp_path / 'a.jsonl.parts'
  parts.mkdir()
  with lock.lock(parts):
    with predictions.refused(
      errors.RunDirectoryError, 'in use .* choose another output'
    ):
      predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')


def test_another_ending(task, tmp_path):
  with predictions.refused(
    errors.ConfigError, 'ends in neither .jsonl nor .npz'
  ):
    predictor.predict(task, arrays(11), tmp_path / 'a.csv')


def test_a_task_that_is_not_built(tmp_path):
  with predictions.refused(errors.TaskError, 'SupervisedTask is not built'):
    predictor.predict(
      small_tasks.supervised(), arrays(11), tmp_path / 'a.jsonl'
    )


@pytest.mark.parametrize(
  ('data', 'text'),
  [
    (lambda: tftrain.Arrays(small_tasks.arrays(), 8), 'never ends'),
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
      lambda: tftrain.Arrays(small_tasks.arrays(features=5), 8, training=False),
      r'predict, batch 0: serve\(\) of SupervisedTask cannot take it',
    ),
  ],
)
def test_data_that_does_not_do(task, data, text, tmp_path):
  with predictions.refused(errors.InputError, text):
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
  task = predictions.make_task()
  task.serve = serve
  with predictions.refused(errors.TaskError, text):
    predictor.predict(task, arrays(11), tmp_path / 'a.jsonl')


def test_arrays_of_varying_shape(task, tmp_path):
  task = predictions.make_task()
  task.serve = lambda x: tf.ones([tf.shape(x)[0], tf.shape(x)[0]])
  with predictions.refused(
    errors.TaskError, 'write .jsonl, or make the shapes equal'
  ):
    predictor.predict(task, arrays(11), tmp_path / 'a.npz')
  assert predictor.predict(task, arrays(11), tmp_path / 'a.jsonl') == 11


def test_a_disk_that_is_full_ends_it(task, tmp_path, monkeypatch):
  def full(path, content):
    raise OSError(28, os.strerror(28), str(path))

  monkeypatch.setattr(files.disk, 'append', full)
  with predictions.refused(errors.RunDirectoryError, 'No space left on device'):
    predictor.predict(task, arrays(9999), tmp_path / 'a.jsonl')

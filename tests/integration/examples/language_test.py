"""The examples that read files learn, and write only what is missing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import digit_records
from examples import language
from examples import stdlib_text
from examples import tiles
from tests import cases
import tftrain


def trained(task, data, steps, **options):
  """What a Trainer reported last."""
  trainer = tftrain.Trainer(task, data, log_every=20, **options)
  return trainer.train(steps).scalars


def files_of(directory):
  return {path: path.stat().st_mtime_ns for path in directory.rglob('*.*')}


# language: passages that share rows


def small_language():
  return language.make_task(
    lambda: keras.optimizers.AdamW(0.006), length=32, size=32, blocks=1
  )


def test_each_epoch_reads_other_passages_of_the_same_modules():
  example = {'text': tf.constant(b'x' * 10 + 'é'.encode() + b'y' * 200)}
  codes = language.characters(example)['ids'].numpy()
  assert stdlib_text.decode(codes) == 'x' * 10 + '??' + 'y' * 200
  found = [language.passage(example, [0, n])['ids'].numpy() for n in range(200)]
  lengths = [len(passage) for passage in found]
  assert 16 <= min(lengths) < 20 and 90 < max(lengths) <= 96
  assert any(ord('?') in passage for passage in found)
  short = {'text': tf.constant(b'short')}
  assert len(language.passage(short, [0, 0])['ids']) == 5


def test_what_is_beside_a_passage_does_not_change_its_logits():
  task = small_language()
  one, other, third = (
    np.arange(begin, begin + count, dtype='int32')[None]
    for begin, count in ((40, 12), (80, 15), (60, 15))
  )
  packed = tftrain.data.Packed(32)

  def logits(*passages):
    ragged = tf.ragged.constant(
      [passage[0].tolist() for passage in passages], row_splits_dtype=tf.int64
    )
    return task.serve(packed.collate({'ids': ragged})).numpy()

  both, with_third, alone = (
    logits(one, other),
    logits(one, third),
    logits(other),
  )
  assert both.shape == (1, 32, stdlib_text.CODES)
  np.testing.assert_array_equal(both[:, :12], with_third[:, :12])
  np.testing.assert_allclose(both[:, 12:27], alone[:, :15], atol=1e-5)


def test_the_first_of_a_passage_is_not_asked_for():
  task = small_language()
  ids = tf.ragged.constant([[1, 2, 3], [4, 5]], row_splits_dtype=tf.int64)
  batch = tftrain.data.Packed(8).collate({'ids': ids})
  assert task.loss(batch, training=False).weights.numpy().tolist() == [2 + 1]


def test_language_shows_what_it_wrote():
  task = small_language()
  batch = {'ids': tf.zeros([1, 32], tf.int32)}
  samples = task.artifacts(batch)['samples']
  assert samples == task.artifacts(batch)['samples']
  assert samples.count('```\ndef ') == 3


@pytest.mark.slow
def test_language_learns_more_than_frequencies():
  data = language.data(16, length=32)
  task = small_language()
  trained(task, data, 150, update=tftrain.Update(clip_norm=1.0))
  test = language.data(64, length=32, training=False)
  codes = stdlib_text.encode(stdlib_text.read('test'))
  share = np.bincount(codes) / len(codes)
  frequencies = -(share * np.log(share + 1e-9)).sum()
  scores = tftrain.Evaluator(task, test).evaluate()
  assert scores['loss'] < 0.9 * frequencies


# digit_records: written once


@pytest.mark.slow
def test_digit_records_learn(tmp_path):
  data = digit_records.data(directory=str(tmp_path))
  assert data.num_examples == 1438
  written = files_of(tmp_path)
  assert len([path for path in written if path.suffix == '.tfrecord']) == 4
  task = digit_records.make_task(lambda: keras.optimizers.Adam(0.002))
  trained(task, data, 600)
  test = digit_records.data(training=False, directory=str(tmp_path))
  assert tftrain.Evaluator(task, test).evaluate()['accuracy'] > 0.95
  digit_records.data(directory=str(tmp_path))
  assert written.items() <= files_of(tmp_path).items()
  shown = task.artifacts(next(iter(test.dataset(0))))
  assert shown['least_sure'].shape == (8, 64, 64, 1)
  probabilities = [
    float(line.split('|')[3]) for line in shown['answers'].split('\n')[2:]
  ]
  assert len(probabilities) == 8
  assert probabilities == sorted(probabilities)


def test_digit_records_are_the_digits(tmp_path):
  data = digit_records.data(training=False, directory=str(tmp_path))
  found = list(data.dataset(0))
  images = np.concatenate([images for images, _ in found]).reshape(-1, 64)
  labels = np.concatenate([labels for _, labels in found])
  wanted, _ = digit_records.digits.load('test')
  assert sorted(map(bytes, images)) == sorted(map(bytes, wanted))
  assert len(labels) == len(wanted)


# tiles: a folder of images


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('tiles') / 'tiles'


def test_tiles_are_written_once_and_held_out(folder):
  train = tiles.train_data(directory=str(folder))
  written = files_of(folder)
  test = tiles.test_data(directory=str(folder))
  assert files_of(folder) == written
  assert len(written) == 2 * (427 // 16) * (640 // 16)
  assert train.num_examples + test.num_examples == len(written)
  assert not folder.with_name('tiles.part').exists()
  assert tftrain.data.ImageFolder(folder).class_names == ['china', 'flower']


def test_a_tile_is_flipped_in_some_epochs():
  example = {'image': tf.reshape(tf.range(16 * 16), (16, 16, 1)), 'label': 1}
  found = {
    int(tiles.flipped(example, [0, n])['image'][0, 0, 0]) for n in range(20)
  }
  assert found == {0, 15}


@pytest.mark.slow
def test_tiles_learn(folder):
  task = tiles.make_task(lambda: keras.optimizers.Adam(0.005))
  trained(task, tiles.train_data(directory=str(folder)), 400)
  test = tiles.test_data(directory=str(folder))
  assert tftrain.Evaluator(task, test).evaluate()['accuracy'] > 0.85
  shown = task.artifacts(next(iter(test.dataset(0))))
  assert shown['hardest'].shape == (8, 64, 64, 1)


@pytest.mark.slow
def test_tiles_do_not_depend_on_the_replicas(folder):
  after = {}
  for name in ('one_device', 'mirrored'):
    strategy = tftrain.make_strategy(name)
    keras.utils.set_random_seed(0)
    with strategy.scope():
      task = tiles.make_task(lambda: keras.optimizers.SGD(0.1))
    data = tiles.train_data(directory=str(folder))
    tftrain.Trainer(task, data, strategy=strategy).train(3)
    after[name] = cases.state_of(task)
  cases.assert_close(after['one_device'], after['mirrored'], 1e-6)

"""examples/language: packed passages of source code."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import language
from examples import stdlib_text
from tests.support import example_runs
import tftrain


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
  example_runs.last_scalars(
    task, data, 150, update=tftrain.Update(clip_norm=1.0)
  )
  test = language.data(64, length=32, training=False)
  codes = stdlib_text.encode(stdlib_text.read('test'))
  share = np.bincount(codes) / len(codes)
  frequencies = -(share * np.log(share + 1e-9)).sum()
  scores = tftrain.Evaluator(task, test).evaluate()
  assert scores['loss'] < 0.9 * frequencies

"""Shuffles: permutations, windows and seeds."""

import pytest
import tensorflow as tf

from tests.support import stored_examples
import tftrain
from tftrain.data.sources import shuffle as shuffle_lib


def test_the_seed_of_an_order_may_be_any_that_an_experiment_takes(records):
  large = stored_examples.only_batches(records.training, 8, seed=2**32 - 1)
  assert (
    stored_examples.flat(large)[: stored_examples.SIZE]
    != stored_examples.flat(records.batches)[: stored_examples.SIZE]
  )
  assert sorted(stored_examples.flat(large)[: stored_examples.SIZE]) == sorted(
    stored_examples.flat(records.batches)[: stored_examples.SIZE]
  )


def test_a_shuffle_window_moves_records_no_further_than_that(tmp_path):
  stored_examples.write_bare(
    tmp_path / 'a.rec', stored_examples.all_examples(size=40)
  )
  source = tftrain.data.TFRecords(tmp_path / 'a.rec', stored_examples.SPEC)
  (batch,) = tftrain.data.Examples(
    source, 40, shuffle=8, batcher=tftrain.data.Ragged()
  ).peek()
  numbers = batch['number'].reshape(5, 8)
  for index, window in enumerate(numbers):
    assert sorted(window) == list(range(8 * index, 8 * index + 8))
    assert list(window) != sorted(window)


@pytest.mark.parametrize('kind', ['records', 'memory'])
def test_without_a_shuffle_training_repeats_what_is_stored(kind, tmp_path):
  source, found = stored_examples.SOURCES[kind](tmp_path)
  pipeline = tftrain.data.Examples(
    source, 5, shuffle=0, batcher=tftrain.data.Ragged()
  )
  expected = [stored_examples.key(one) for one in found]
  assert (
    stored_examples.flat(stored_examples.only_batches(pipeline, 15))
    == (3 * expected)[:75]
  )
  stored_examples.assert_resumes(pipeline, [3, 9], 12)


def test_permutations_hit_every_index_once():
  for size in (1, 2, 37, 1000):
    index = tf.range(size, dtype=tf.int64)
    seen = set()
    for epoch in range(3):
      found = shuffle_lib.permuted(index, [1, 2, epoch], size).numpy()
      assert sorted(found) == list(range(size))
      seen.add(tuple(found.tolist()))
    assert len(seen) == 3 or size <= 2

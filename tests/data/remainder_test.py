"""The last batch: kept, dropped, or padded with weight zero."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import stored_examples
import tftrain
from tftrain.data.sources import feature_spec


def weighted_rows(pipeline, place):
  """(sum of weights, weighted sum of x) over all batches of 5 rows each."""
  total, whole = 0.0, 0.0
  for batch in stored_examples.only_batches(pipeline):
    for leaf in tf.nest.flatten(batch):
      assert leaf.shape[0] == 5
    x, weights = place(batch)
    total += float(tf.reduce_sum(weights))
    whole += float(tf.reduce_sum(x * weights))
  return total, whole


@pytest.mark.parametrize('mapped', [None, lambda *one: one])
def test_padding_has_weight_zero_in_tuples_and_dictionaries(mapped):
  x = np.arange(1.0, 38.0).astype('float32')
  given = np.random.RandomState(0).randint(1, 4, 37).astype('float32')
  options = {'training': False, 'remainder': 'pad'}
  pair = tftrain.data.Examples(tftrain.data.InMemory((x, x)), 5, **options)
  assert weighted_rows(pair, lambda b: (b[0], b[2])) == (37, x.sum())
  one = tftrain.data.Examples(tftrain.data.InMemory(x), 5, **options)
  assert weighted_rows(one, lambda b: b) == (37, x.sum())
  triple = tftrain.data.Examples(
    tftrain.data.InMemory((x, x, given)), 5, **options
  )
  sums = given.sum(), (x * given).sum()
  assert weighted_rows(triple, lambda b: (b[0], b[2])) == sums
  names = tftrain.data.Examples(tftrain.data.InMemory({'x': x}), 5, **options)
  assert weighted_rows(names, lambda b: (b['x'], b['weights'])) == (
    37,
    x.sum(),
  )
  own = tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'weights': given}), 5, **options
  )
  assert weighted_rows(own, lambda b: (b['x'], b['weights'])) == sums
  for pipeline in (pair, triple, names):
    for leaf in tf.nest.flatten(pipeline.element_spec):
      assert leaf.shape[0] == 5
    assert pipeline.num_steps == 8


def test_padding_works_on_every_dtype_and_on_texts():
  arrays = {
    name: np.array([[1, 1], [1, 1], [0, 1]], tf.as_dtype(name).as_numpy_dtype)
    for name in (
      *feature_spec._AS_INT64,
      *feature_spec._AS_BYTES,
      'int64',
      'float32',
    )
  }
  texts = np.array(['a', 'b', 'c'])
  pipeline = tftrain.data.Examples(
    tftrain.data.InMemory({**arrays, 'texts': texts}),
    2,
    remainder='pad',
    training=False,
  )
  _, last = pipeline.peek(2)
  for name in arrays:
    assert last[name].astype('float32').tolist() == [[0, 1], [0, 1]], name
  assert last['texts'].tolist() == [b'c', b'c']
  assert last['weights'].tolist() == [1, 0]


def test_padding_goes_with_a_filter_and_with_padded_sequences():
  found = stored_examples.sequences([3, 7, 1, 5, 2])
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found),
    3,
    filter=lambda one: tf.size(one['ids']) > 1,
    batcher=tftrain.data.Padded(7),
    remainder='pad',
    training=False,
  )
  first, last = pipeline.peek(2)
  assert first['weights'].tolist() == [1, 1, 1]
  assert last['weights'].tolist() == [1, 0, 0]
  assert last['ids'].shape == (3, 7) and last['ids'][0].sum() > 0
  assert (last['ids'][1:] == last['ids'][0]).all()  # copies of a real row


@pytest.mark.slow
def test_a_dropped_remainder_is_that_of_the_whole(records):
  pipeline = records.pipeline(training=False, remainder='drop')
  expected = [stored_examples.key(one) for one in records.examples[:35]]
  assert (
    stored_examples.flat(stored_examples.only_batches(pipeline)) == expected
  )
  assert pipeline.num_steps == 7
  kept = [one for one in records.examples if len(one['ids']) > 1]
  filtered = records.pipeline(
    training=False,
    remainder='drop',
    filter=lambda one: tf.size(one['ids']) > 1,
  )
  whole = len(kept) // 5 * 5
  assert whole < len(kept)
  assert stored_examples.flat(stored_examples.only_batches(filtered)) == [
    stored_examples.key(one) for one in kept[:whole]
  ]

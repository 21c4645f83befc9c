"""Bucketed, Packed, Padded and Ragged: batches of sequences."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import data_errors
from tests.support import stored_examples
import tftrain
from tftrain import errors

_LENGTHS = np.random.RandomState(0).randint(1, 17, 120)


def test_bucketed_pads_to_boundaries_and_has_each_example_once_per_epoch():
  found = stored_examples.sequences(_LENGTHS)
  source = stored_examples.in_memory(found, length=np.asarray(_LENGTHS))
  batcher = tftrain.data.Bucketed([4, 8, 16], window=5, value=-1)
  pipeline = tftrain.data.Examples(source, 8, batcher=batcher)
  batches = stored_examples.only_batches(pipeline, 30)
  seen = []
  for batch in batches:
    ids, lengths = batch['ids'].numpy(), batch['length'].numpy()
    assert ids.shape[0] == 8
    longest = lengths.max()
    assert ids.shape[1] == next(b for b in (4, 8, 16) if b >= longest)
    for row, length in zip(ids, lengths, strict=True):
      assert (row[length:] == -1).all()
      seen.append(row[:length].tolist())
  expected = sorted(one.tolist() for one in found)
  assert sorted(seen[:120]) == expected
  assert sorted(seen[120:]) == expected
  assert seen[:120] != seen[120:]
  assert len({batch['ids'].shape[1] for batch in batches}) == 3


def test_bucketed_cuts_what_is_longer_where_it_is_told_to():
  found = stored_examples.sequences([3, 20, 5, 9])
  batcher = tftrain.data.Bucketed([4, 8], window=1, too_long='truncate')
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found), 4, batcher=batcher, training=False
  )
  (batch,) = pipeline.peek()
  assert batch['ids'].shape == (4, 8)
  kept = sorted([n for n in row if n] for row in batch['ids'].tolist())
  assert kept == sorted(one[:8].tolist() for one in found)


@pytest.mark.slow
def test_bucketed_goes_by_the_feature_it_is_told():
  x = stored_examples.sequences([2, 8, 2, 8])
  y = tf.ragged.constant(
    [[1.0], [2.0], [3.0] * 4, [4.0] * 4], row_splits_dtype=tf.int64
  )
  for by, wanted in (('ids', [[0, 2], [1, 3]]), ('y', [[0, 1], [2, 3]])):
    pipeline = tftrain.data.Examples(
      stored_examples.in_memory(x, y=y, number=np.arange(4)),
      2,
      batcher=tftrain.data.Bucketed([2, 8], by=by),
      training=False,
    )
    assert [b['number'].tolist() for b in pipeline.peek(2)] == wanted


@pytest.mark.parametrize('remainder', ['keep', 'drop', 'pad'])
def test_a_bucketed_evaluation_loses_no_more_than_remainder_says(remainder):
  found = stored_examples.sequences(_LENGTHS[:37])
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found, number=np.arange(37)),
    5,
    batcher=tftrain.data.Bucketed([4, 8, 16], window=3),
    remainder=remainder,
    training=False,
  )
  batches = stored_examples.only_batches(pipeline)
  assert pipeline.num_steps == len(batches) == 7 + (remainder != 'drop')
  numbers = [
    number
    for batch in batches
    for number, weight in zip(
      batch['number'].numpy(),
      batch.get('weights', tf.ones_like(batch['number'])).numpy(),
      strict=True,
    )
    if weight
  ]
  assert (
    len(numbers) == len(set(numbers)) == (35 if remainder == 'drop' else 37)
  )
  if remainder != 'keep':
    assert {len(batch['ids']) for batch in batches} == {5}


def unpacked(batch, length, name='ids'):
  """The sequences in packed rows, the slow way; checks what goes with them."""
  found = []
  values = np.asarray(batch[name])
  segments = np.asarray(batch[f'{name}_segment_ids'])
  positions = np.asarray(batch[f'{name}_positions'])
  assert values.shape == segments.shape == positions.shape
  assert values.shape[1] == length
  for row, marks, places in zip(values, segments, positions, strict=True):
    used = int((marks > 0).sum())
    assert (marks[used:] == 0).all() and (row[used:] == 0).all()
    assert (places[used:] == 0).all()
    assert (np.diff(marks[:used]) >= 0).all()
    for segment in range(1, int(marks.max(initial=0)) + 1):
      inside = marks == segment
      assert places[inside].tolist() == list(range(inside.sum()))
      found.append(row[inside].tolist())
  return found


def pieces(found, length, too_long):
  """What is to come out of Packed: lists of numbers."""
  if too_long == 'truncate':
    return [one[:length].tolist() for one in found]
  return [
    one[begin : begin + length].tolist()
    for one in found
    for begin in range(0, len(one), length)
  ]


@pytest.mark.parametrize('too_long', ['split', 'truncate', 'error'])
@pytest.mark.parametrize('training', [True, False])
def test_packed_rows_hold_every_sequence_exactly_once(training, too_long):
  length = 16 if too_long == 'error' else 11
  found = stored_examples.sequences(_LENGTHS)
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found),
    4,
    batcher=tftrain.data.Packed(length, window=30, too_long=too_long),
    training=training,
    epochs=1,
  )
  batches = stored_examples.only_batches(pipeline)
  seen = [one for batch in batches for one in unpacked(batch, length)]
  assert sorted(seen) == sorted(pieces(found, length, too_long))
  tokens = sum(map(len, seen))
  places = sum(batch['ids'].shape[0] for batch in batches) * length
  assert tokens / places > 0.8  # else it would be no packing
  assert all(batch['ids'].shape[0] == 4 for batch in batches[:-1])
  if not training:
    # First fit leaves no sequence where an earlier row had room for it.
    assert seen[0] == pieces(found, length, too_long)[0]


@pytest.mark.slow
def test_packed_keeps_the_features_of_an_example_together():
  found = stored_examples.sequences(_LENGTHS)
  weights = tf.RaggedTensor.from_row_lengths(
    np.concatenate(found) / 2, np.asarray(_LENGTHS, np.int64)
  )
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found, weights=weights),
    4,
    batcher=tftrain.data.Packed(16, window=30),
  )
  for batch in pipeline.peek(3):
    np.testing.assert_array_equal(batch['ids'] / 2, batch['weights'])
    np.testing.assert_array_equal(
      batch['ids_segment_ids'], batch['weights_segment_ids']
    )


def test_empty_sequences_take_no_place_in_packed_rows():
  found = stored_examples.sequences([0, 3, 0, 0, 4, 0])
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found),
    2,
    batcher=tftrain.data.Packed(8, window=3),
    training=False,
  )
  batches = stored_examples.only_batches(pipeline)
  seen = [one for batch in batches for one in unpacked(batch, 8)]
  assert seen == [one.tolist() for one in found if len(one)]


@pytest.mark.parametrize('length', [None, 9])
def test_padded_fills_up_at_the_end(length):
  found = stored_examples.sequences([3, 7, 1, 5, 2])
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found),
    2,
    batcher=tftrain.data.Padded(length, value=-1),
    training=False,
  )
  batches = [batch['ids'] for batch in pipeline.peek(3)]
  assert [b.shape for b in batches] == [
    (2, length or 7),
    (2, length or 5),
    (1, length or 2),
  ]
  rows_there = [row for batch in batches for row in batch]
  for row, one in zip(rows_there, found, strict=True):
    assert row.tolist() == one.tolist() + [-1] * (len(row) - len(one))
  assert pipeline.element_spec['ids'].shape.as_list() == [None, length]


def test_padded_truncates_where_it_is_told_to():
  found = stored_examples.sequences([3, 7])
  pipeline = tftrain.data.Examples(
    stored_examples.in_memory(found),
    2,
    batcher=tftrain.data.Padded(4, too_long='truncate'),
    training=False,
  )
  (batch,) = pipeline.peek()
  assert batch['ids'].tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]


def test_padded_fills_texts_and_steps_of_vectors():
  texts = tf.ragged.constant(
    [['a'], ['b', 'c', 'd'], []], row_splits_dtype=tf.int64
  )
  steps = tf.RaggedTensor.from_row_lengths(
    np.arange(8.0).reshape(4, 2), np.array([2, 0, 2], np.int64)
  )
  pipeline = tftrain.data.Examples(
    tftrain.data.InMemory({'texts': texts, 'steps': steps}),
    3,
    batcher=tftrain.data.Padded(3),
    training=False,
  )
  (batch,) = pipeline.peek()
  assert batch['texts'].tolist() == [
    [b'a', b'', b''],
    [b'b', b'c', b'd'],
    [b'', b'', b''],
  ]
  assert batch['steps'].shape == (3, 3, 2)
  assert batch['steps'].sum(-1).tolist() == [[1, 5, 0], [0, 0, 0], [9, 13, 0]]


def test_ragged_leaves_lengths_as_they_are():
  found = stored_examples.sequences([3, 0, 2])
  (batch,) = tftrain.data.Examples(
    stored_examples.in_memory(found),
    3,
    batcher=tftrain.data.Ragged(),
    training=False,
  ).peek()
  assert isinstance(batch['ids'], tf.RaggedTensor)
  assert batch['ids'].to_list() == [one.tolist() for one in found]


def ragged(*lengths):
  counts = tf.constant(lengths, tf.int64)
  return tftrain.data.InMemory(
    {'ids': tf.ragged.range(counts, row_splits_dtype=tf.int64)}
  )


def test_lengths_that_vary_without_a_batcher():
  with data_errors.refused(
    "cannot batch 'ids': its length varies; give Examples(batcher=...) Padded, "
    'Bucketed, Packed or Ragged'
  ):
    tftrain.data.Examples(ragged(1, 2), 2)


@pytest.mark.parametrize(
  ('batcher', 'what'),
  [
    (tftrain.data.Padded(4), 'Padded.length = 4'),
    (tftrain.data.Bucketed([2, 4]), 'Bucketed.boundaries[-1] = 4'),
    (tftrain.data.Packed(4), 'Packed.length = 4'),
  ],
)
def test_a_sequence_that_is_too_long(batcher, what):
  with data_errors.refused(
    f"a sequence is longer than {what}: 9; raise it, or set too_long='truncate'"
  ):
    data_errors.read(ragged(1, 2, 9, 3), batcher=batcher)


def test_batchers_that_have_nothing_to_do():
  source = tftrain.data.InMemory({'x': np.zeros([4, 2])})
  with data_errors.refused(
    "Bucketed: no feature varies in length; give a spec such as 'int64[?]', or "
    'leave the batcher out'
  ):
    tftrain.data.Examples(source, 2, batcher=tftrain.data.Bucketed([2]))
  with data_errors.refused(
    "Packed: every feature must vary in length ('int64[?]'); drop the others "
    'in Examples.map'
  ):
    tftrain.data.Examples(source, 2, batcher=tftrain.data.Packed(2))


def test_features_of_unequal_length_cannot_be_packed_together():
  lengths = tf.constant([1, 2], tf.int64)
  source = tftrain.data.InMemory({
    'x': tf.ragged.range(lengths, row_splits_dtype=tf.int64),
    'y': tf.ragged.range(lengths[::-1], row_splits_dtype=tf.int64),
  })  # fmt: skip
  with data_errors.refused(
    'Packed: the features of an example differ in length; make them alike, or '
    'drop one in Examples.map'
  ):
    data_errors.read(source, batcher=tftrain.data.Packed(4))


def test_ragged_batches_cannot_be_padded_with_rows():
  with data_errors.refused(
    "Examples.remainder = 'pad' needs Padded or Bucketed: rows of ragged "
    'tensors cannot be filled up',
    errors.ConfigError,
  ):
    tftrain.data.Examples(
      ragged(1, 2, 3), 2, batcher=tftrain.data.Ragged(), remainder='pad'
    )

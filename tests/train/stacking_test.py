"""Stacking: each batch once, in order, whatever the groups and the end."""

import numpy as np
import pytest
import tensorflow as tf

from tftrain.train import stacking

_BATCHES = 21


def dataset():
  rows = np.arange(_BATCHES * 4, dtype='float32').reshape(-1, 4)
  return tf.data.Dataset.from_tensor_slices(
    ({'x': rows}, np.arange(_BATCHES))
  ).map(lambda x, y: (x, tf.reshape(y, [1])))


def taken(how, ns):
  """Returns (count, numbers of the batches) of each call, and the shapes."""
  iterator = iter(how.grouped(dataset()))
  take = tf.function(lambda n: how.take(iterator, n))
  found, shapes = [], set()
  for n in ns:
    (x, y), count = take(tf.constant(n, tf.int64))
    count = int(count)
    numbers = y.numpy()[:count, 0].tolist()
    np.testing.assert_array_equal(x['x'][:count, 0], np.float32(numbers) * 4)
    assert not x['x'].numpy()[count:].any()
    shapes.add((tuple(x['x'].shape), tuple(y.shape)))
    found.append((count, numbers))
  return found, shapes


@pytest.mark.parametrize('most', [8, 16, 64])
def test_groups_are_read_whole(most):
  found, shapes = taken(stacking.Stacking(most, 8), [1, min(9, most), 5, 3])
  counts = [8, 8, 5, 0] if most == 8 else [8, 13, 0, 0]
  assert [count for count, _ in found] == counts
  assert sum((numbers for _, numbers in found), []) == list(range(_BATCHES))
  assert shapes == {((most, 4), (most, 1))}


def test_nothing_is_read_before_it_is_needed():
  how = stacking.Stacking.of(dataset().element_spec, one_by_one=True)
  assert how.group == 1
  found, _ = taken(how, [1, 2, 0, 40, 1])
  assert [count for count, _ in found] == [1, 2, 0, 18, 0]
  assert sum((numbers for _, numbers in found), []) == list(range(_BATCHES))


@pytest.mark.parametrize(
  ('rows', 'most', 'group'),
  [(1, 64, 8), (2**19, 32, 8), (2**22, 4, 4), (2**25, 1, 1), (1_398_102, 8, 8)],
)
def test_stacked_batches_take_16_mb_at_most(rows, most, group):
  spec = tf.TensorSpec([rows], tf.uint8)
  how = stacking.Stacking.of(spec, one_by_one=False)
  assert (how.most, how.group) == (most, group)


def test_empty_tensors_have_the_shapes_of_what_is_taken():
  how = stacking.Stacking(16, 8)
  iterator = iter(how.grouped(dataset()))
  empty = how.empty(iterator)
  stacked, _ = how.take(iterator, tf.constant(3, tf.int64))
  tf.nest.assert_same_structure(empty, stacked)
  for one, other in zip(
    tf.nest.flatten(empty), tf.nest.flatten(stacked), strict=True
  ):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)

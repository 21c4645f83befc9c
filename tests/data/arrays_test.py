"""Arrays: each example once an epoch, in another order each time."""

import numpy as np
import tensorflow as tf

import tftrain


def test_one_epoch_sees_each_example_once_and_epochs_differ():
  index = np.arange(67)
  data = tftrain.Arrays((index, index), 8)
  batches = iter(data.dataset(seed=4))
  rows = np.concatenate([next(batches)[0].numpy() for _ in range(17)])
  first, second = rows[:67], rows[67:134]
  assert sorted(first) == sorted(second) == list(index)
  assert list(first) != list(second)
  assert list(first) != list(index)
  resumed = next(iter(data.dataset(seed=4, start_step=9)))[0].numpy()
  np.testing.assert_array_equal(resumed, rows[72:80])
  in_graph = data.batch(4, tf.constant(9, tf.int64))[0].numpy()
  np.testing.assert_array_equal(in_graph, rows[72:80])
  other = next(iter(data.dataset(seed=5)))[0].numpy()
  assert list(other) != list(rows[:8])

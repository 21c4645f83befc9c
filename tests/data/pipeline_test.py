"""Training data that are empty or of the wrong kind: one line before step 1."""

import numpy as np
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors


def test_no_data():
  x, y = small_tasks.arrays()
  with error_lines.refused(errors.InputError, '0 examples'):
    tftrain.Arrays((x[:0], y[:0]), 8)
  with error_lines.refused(errors.InputError, '0 batches'):
    small_tasks.trainer([])
  with error_lines.refused(errors.InputError, '0 batches'):
    small_tasks.trainer(
      tf.data.Dataset.from_tensor_slices((x, y)).take(0).batch(8)
    )
  filtered = tf.data.Dataset.from_tensor_slices((x, y))
  filtered = filtered.filter(lambda *_: False).batch(8)
  with error_lines.refused(errors.InputError, '0 batches'):
    small_tasks.trainer(filtered)
  with error_lines.refused(errors.InputError, '0 batches'):
    tftrain.Evaluator(small_tasks.supervised(), [])


def test_data_of_the_wrong_kind():
  x, y = small_tasks.arrays()
  with error_lines.refused(errors.InputError, '.batch(n)'):
    small_tasks.trainer(tf.data.Dataset.from_tensor_slices((x, y)))
  with error_lines.refused(errors.InputError, 'only once', 'function'):
    small_tasks.trainer(iter([(x, y)]))
  with error_lines.refused(errors.InputError, 'ndarray', 'tftrain.data.Arrays'):
    small_tasks.trainer(x)
  with error_lines.refused(errors.InputError, '67, 66 rows'):
    tftrain.Arrays((x, y[1:]), 8)
  with error_lines.refused(errors.InputError, 'object'):
    tftrain.Arrays(np.array([[1], [2, 3]], dtype=object), 1)

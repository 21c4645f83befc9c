"""Evaluator: data that never end are refused."""

import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors


def test_an_evaluation_that_would_never_end():
  x, y = small_tasks.arrays()
  endless = tf.data.Dataset.from_tensors((x, y)).repeat()
  for data in (tftrain.Arrays((x, y), 8), endless):
    with error_lines.refused(errors.InputError, 'never ends', 'training=False'):
      tftrain.Evaluator(small_tasks.supervised(), data)

"""Checks for TPUs: static shapes, precision and advice."""

import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.train import _tpu_checks


def spec(*shape):
  return tf.TensorSpec(shape, tf.float32)


@pytest.mark.parametrize(
  ('batch', 'message'),
  [
    (
      {'image': spec(8, 4), 'text': spec(8, None)},
      r"feature 'text' of a batch has the shape \(8, None\), a TPU needs "
      r'static ones; give batcher=Padded\(length\)',
    ),
    (
      (spec(8, 4), {'y': spec(None)}),
      r"feature '1/y' of a batch has the shape \(None,\), .*"
      "remainder='drop' or 'pad'; in tf.data drop_remainder=True",
    ),
    (tf.TensorSpec(None), 'a batch has the shape <unknown>'),
    ({'words': tf.RaggedTensorSpec([8, None])}, r"'words' .*Padded\(length\)"),
  ],
)
def test_shapes_that_are_not_static_are_refused(batch, message):
  with pytest.raises(errors.InputError, match=message) as raised:
    _tpu_checks.check_shapes(batch)
  assert '\n' not in str(raised.value)


def test_static_shapes_are_fine():
  _tpu_checks.check_shapes(({'x': spec(8, 4, 4)}, spec(8)))


def test_what_a_tpu_computes_in():
  _tpu_checks.check_precision(['float32', 'bfloat16'])
  with pytest.raises(errors.ConfigError, match="precision = 'mixed_bfloat16'"):
    _tpu_checks.check_precision(['float32', 'float16'])


def test_advice():
  assert not list(_tpu_checks.advice(['float32', 'bfloat16'], 100))
  few, slow = _tpu_checks.advice(['float32'], 99)
  assert few.startswith('steps_per_loop=99 is few for a TPU')
  assert "'mixed_bfloat16'" in slow


def test_a_trainer_asks_for_it(monkeypatch, caplog):
  # There is no TPU to make its strategy of; another takes its name.
  monkeypatch.setattr(tf.distribute, 'TPUStrategy', tf.distribute.Strategy)
  data = tftrain.Arrays(small_tasks.arrays(), 8, epochs=1)  # ends with 3 rows
  with pytest.raises(errors.InputError, match="feature '0' of a batch has"):
    tftrain.Trainer(small_tasks.supervised(), data)
  tftrain.Trainer(
    small_tasks.supervised(),
    tftrain.Arrays(small_tasks.arrays(), 8),
    steps_per_loop=7,
  )
  assert 'steps_per_loop=7 is few for a TPU' in caplog.text

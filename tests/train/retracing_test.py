"""The compiled loop: retraces are explained and limited."""

import logging

import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.train import retracing


def loop(max_traces=None):
  return retracing.Loop(lambda iterator, n: n + 0, 'the loop', max_traces)


def call(loop, dataset):
  return loop(iter(dataset), tf.constant(1, tf.int64))


def batches(shape=(8, 3), dtype=tf.float32, key='x'):
  return tf.data.Dataset.from_tensors(
    ({key: tf.zeros(shape, dtype)}, tf.zeros(shape[:1], tf.int64))
  )


def test_the_same_data_need_no_other_trace(caplog):
  one = loop(max_traces=1)
  for _ in range(3):
    call(one, batches())
  assert one.traces == 1
  assert caplog.records == []


@pytest.mark.parametrize(
  ('then', 'text'),
  [
    (
      batches((7, 3)),
      "batch[0]['x'] was float32[8, 3] and is float32[7, 3]; make all batches "
      'of one shape (drop_remainder=True, padding), or say which sizes vary in '
      'the element_spec of the data',
    ),
    (
      batches(dtype=tf.float64),
      "batch[0]['x'] was float32[8, 3] and is float64[8, 3]; cast it where the "
      'data is made (tf.cast)',
    ),
    (
      batches(key='y'),
      "a batch has batch[0]['y'] and has no batch[0]['x'] any more; give each "
      'batch the same structure',
    ),
  ],
  ids=['shape', 'dtype', 'structure'],
)
def test_another_trace_is_explained(caplog, then, text):
  one = loop()
  call(one, batches())
  call(one, then)
  assert one.traces == 2
  (record,) = (r for r in caplog.records if r.name == 'absl')
  assert record.levelno == logging.WARNING
  assert record.getMessage() == (
    f'the loop is compiled again, 2 times by now, as {text}.'
  )
  call(one, batches())
  assert len([r for r in caplog.records if r.name == 'absl']) == 1


def test_too_many_traces_are_an_error_before_the_next():
  one = loop(max_traces=2)
  call(one, batches())
  call(one, batches((7, 3)))
  with pytest.raises(errors.InputError, match=r'\(max_traces is 2\)'):
    call(one, batches((6, 3)))
  assert one.traces == 2


@pytest.mark.parametrize('max_traces', [None, 1])
def test_a_run_whose_data_change_says_so(tmp_path, caplog, max_traces):
  """The second life in one process gets other batches than the first."""
  rows = [8]

  def data():
    x, y = small_tasks.arrays(96)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(*rows, True)

  recipe = tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.data.DatasetPipeline(data, resume='restart'),
    steps=4,
    checkpoint_every=2,
    export=False,
    max_traces=max_traces,
    strategy='one_device',
  )
  run = recipe.prepare(tmp_path)
  run.last_step = 2
  run.train()
  assert run.trainer.traces == 1
  run.last_step = 4
  rows[0] = 6
  if max_traces:
    with pytest.raises(errors.InputError, match='max_traces is 1'):
      run.train()
    return
  run.train()
  assert run.trainer.traces == 2
  assert [
    record
    for record in caplog.records
    if 'batch[0] was float32[8, 6] and is float32[6, 6]' in record.getMessage()
  ]


@pytest.mark.parametrize('value', [0, -1, 1.5, 'many'])
def test_max_traces_is_a_number(value):
  with pytest.raises(errors.ConfigError, match='max_traces'):
    tftrain.Experiment(
      small_tasks.supervised, lambda: None, steps=1, max_traces=value
    )

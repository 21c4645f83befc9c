"""JIT: what `auto` chooses, and that every attempt of a run keeps it."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.train import jit as jit_lib

layers = keras.layers


def arrays(rows=96, shape=(6,)):
  random = np.random.RandomState(0)
  x = random.normal(size=(rows, *shape)).astype('float32')
  return x, (x.reshape(rows, -1).sum(1) > 0).astype('int64')


def make_task(*parts, shape=(6,), kind=tftrain.SupervisedTask):
  keras.utils.set_random_seed(0)
  parts = parts or (layers.Dense(8, 'tanh'),)
  return kind(
    keras.Sequential([keras.Input(shape), *parts, layers.Dense(2)]),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(0.01),
  )


def trainer(task=None, data=None, **options):
  return tftrain.Trainer(
    task or make_task(),
    tftrain.Arrays(arrays(), 8) if data is None else data,
    update=tftrain.Update(**{'jit': 'auto', **options}),
  )


def assert_same_state(*trainers):
  small_tasks.assert_same_bits(*map(small_tasks.state_of, trainers))


def test_a_small_step_is_compiled_in_blocks():
  run = trainer()
  run.prepare()
  assert run.jit.jit == 'block'
  assert str(run.jit) == 'jit=block: 0.0023 MFLOPs a step on a CPU'
  assert run.step == 0
  assert run.facts()['jit'] == 'block'


class Calls(tftrain.SupervisedTask):
  """Calls what XLA cannot compile."""

  def loss(self, batch, training):
    x, y = batch
    x = tf.ensure_shape(
      tf.py_function(lambda x: x * 1.0, [x], x.dtype), x.shape
    )
    return super().loss((x, y), training)


class Shows(tftrain.SupervisedTask):
  """Writes a summary in a step."""

  def loss(self, batch, training):
    tf.summary.scalar('mean', tf.reduce_mean(batch[0]))
    return super().loss(batch, training)


def convolution():
  keras.utils.set_random_seed(0)
  parts = [layers.Reshape((3, 2)), layers.Conv1D(4, 2), layers.Flatten()]
  return make_task(*parts)


class OwnConvolution(tftrain.SupervisedTask):
  """A convolution that is no layer."""

  def loss(self, batch, training):
    x, y = batch
    filters = tf.ones([2, 2, 2])
    x = tf.reshape(tf.nn.conv1d(tf.reshape(x, [-1, 3, 2]), filters, 1, 'SAME'),
                   [-1, 6])  # fmt: skip
    return super().loss((x, y), training)


def ragged():
  return tf.data.Dataset.from_tensor_slices(arrays(20)).batch(8)


@pytest.mark.parametrize(
  ('make', 'data', 'why'),
  [
    (lambda: make_task(kind=Calls), None, 'EagerPyFunc'),
    (lambda: make_task(kind=Shows), None, 'tf.summary is called in a step'),
    (convolution, None, 'conv1d is a convolution on a CPU'),
    (lambda: make_task(kind=OwnConvolution), None, 'Conv2D.* on a CPU'),
    (make_task, ragged, r'batch\[0\] is float32\[\?, 6\], no numbers of'),
  ],
  ids=['py_function', 'tf.summary', 'convolution', 'own convolution', 'ragged'],
)
def test_what_is_not_compiled_is_named(make, data, why, tmp_path):
  run = trainer(make(), None if data is None else data())
  with tf.summary.create_file_writer(str(tmp_path)).as_default():
    run.train(5)
  assert run.step in (3, 5)
  assert run.jit.jit == 'off'
  assert re.search(why, run.jit.why), run.jit


def test_a_large_step_on_a_cpu_is_not_compiled(monkeypatch):
  monkeypatch.setattr(jit_lib, '_MOST_FLOPS', 1000)
  run = trainer()
  run.train(3)
  assert str(run.jit) == 'jit=off: 0.0023 MFLOPs a step on a CPU'


def test_several_replicas_are_not_compiled():
  strategy = tftrain.make_strategy('mirrored')
  with strategy.scope():
    task = make_task()
  run = tftrain.Trainer(
    task,
    tftrain.Arrays(arrays(), 8),
    strategy=strategy,
    update=tftrain.Update(jit='auto'),
  )
  run.train(3)
  assert str(run.jit) == 'jit=off: several replicas'


@pytest.mark.parametrize('jit', ['off', 'block'])
def test_a_resumed_run_goes_on_as_it_began(jit, tmp_path, monkeypatch, caplog):
  first = trainer(jit=jit)
  first.train(5)
  tftrain.Checkpointer(tmp_path, first).save()
  if jit == 'block':  # the rule would choose otherwise today
    monkeypatch.setattr(jit_lib, '_MOST_FLOPS', 0)
  second = trainer()
  saved = tftrain.Checkpointer(tmp_path, second)
  saved.wait()
  assert saved.restore() == 5
  second.train(10)
  assert second.jit == jit_lib.Choice(jit, 'as the run began')
  assert not [r for r in caplog.records if 'goes on with' in r.getMessage()]
  whole = trainer(jit=jit)
  whole.train(10)
  assert_same_state(whole, second)


@pytest.mark.slow
def test_auto_takes_the_steps_of_what_it_chose():
  for make in (make_task, convolution):
    auto = trainer(make())
    auto.train(20)
    other = trainer(make(), jit=auto.jit.jit)
    other.train(20)
    assert_same_state(auto, other)

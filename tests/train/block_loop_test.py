"""Block loop: equal to the plain loop, and bit-equal however blocks are cut."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.train import block_loop
from tftrain.train import blocks

layers = keras.layers
_STEPS = 100


def arrays(rows=96):
  random = np.random.RandomState(0)
  x = random.normal(size=(rows, 6)).astype('float32')
  return x, (x.sum(1) > 0).astype('int64')


def make_task(optimizer=None, dropout=0.0, norm=False, **others):
  keras.utils.set_random_seed(0)
  parts = [keras.Input((6,)), layers.Dense(8, 'tanh')]
  parts += [layers.BatchNormalization()] if norm else []
  parts += [layers.Dropout(dropout, seed=1)] if dropout else []
  return tftrain.SupervisedTask(
    keras.Sequential([*parts, layers.Dense(2)]),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer or keras.optimizers.Adam(0.01),
    **others,
  )


def trained(jit, steps=_STEPS, data=None, task=None, log_every=100, **options):
  trainer = tftrain.Trainer(
    task or make_task(),
    tftrain.Arrays(arrays(), 8) if data is None else data,
    log_every=log_every,
    update=tftrain.Update(jit=jit, **options),
  )
  return trainer, trainer.train(steps)


def state_of(trainer):
  return {k: v.numpy() for k, v in trainer.read_state().items()}


def assert_close(one, other, tolerance):
  for a, b in zip(
    one.task.model.get_weights(), other.task.model.get_weights(), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def assert_same_bits(one, other):
  first, second = state_of(one), state_of(other)
  assert first.keys() == second.keys()
  for name, value in first.items():
    if name != 'trainer/iterator':  # its bytes name the iterator
      np.testing.assert_array_equal(value, second[name], err_msg=name)


def adamw():
  return keras.optimizers.AdamW(0.01, weight_decay=0.1)


_OPTIONS = {
  'plain': ({}, {}),
  'clip': ({'clip_norm': 0.1}, {}),
  'clip_value': ({'clip_value': 0.01}, {}),
  'clip_adaptive': ({'clip_adaptive': 0.01}, {}),
  'accumulate': ({'accumulate': 2}, {}),
  'accumulate unevenly': ({'accumulate': 3}, {}),
  'ema': ({'ema': 0.9}, {}),
  'freeze': ({'freeze': 'dense/kernel'}, {}),
  'rates': ({'rates': {'dense_1': 3.0}, 'no_decay': 'bias'}, {'o': adamw}),
  'loss scale': ({'loss_scale': 'dynamic'}, {}),
  'batch norm': ({}, {'norm': True}),
  'remat': ({'remat': 'dense'}, {}),
  'keras metric': ({}, {'metrics': ['accuracy']}),
}
_QUICK = ('plain', 'accumulate')


@pytest.mark.parametrize(
  ('options', 'kind'),
  [
    pytest.param(*case, marks=[] if name in _QUICK else pytest.mark.slow)
    for name, case in _OPTIONS.items()
  ],
  ids=_OPTIONS.keys(),
)
def test_a_block_equals_the_plain_loop(options, kind):
  runs = []
  for jit in ('off', 'block'):
    others = dict(kind)
    make = others.pop('o', None)
    task = make_task(make and make(), **others)
    runs.append(trained(jit, task=task, **options))
  (plain, expected), (block, found) = runs
  assert_close(plain, block, 1e-5)
  assert expected.scalars.keys() == found.scalars.keys()
  for name, value in expected.scalars.items():
    np.testing.assert_allclose(
      found.scalars[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )
  if options.get('accumulate') != 3:  # the plain loop guesses uneven shapes
    assert block.loop.flops == plain.loop.flops


def _cut(monkeypatch, most):
  monkeypatch.setattr(blocks, 'MOST', most)
  monkeypatch.setattr(blocks, 'STACKED', most)


def datasets():
  return {
    'arrays': lambda: tftrain.Arrays(arrays(), 8),
    'ragged': lambda: tftrain.Arrays(arrays(92), 8, epochs=3),
    'examples': lambda: tftrain.data.Examples(
      tftrain.data.InMemory(dict(zip('xy', arrays(), strict=True))),
      8,
      select=('x', 'y'),
    ),
    'dataset': lambda: (
      lambda: (
        tf.data.Dataset.from_tensor_slices(arrays())
        .shuffle(50, seed=1)
        .batch(8, drop_remainder=True)
      )
    ),
  }


@pytest.mark.parametrize(
  'kind', ['arrays', *(pytest.param(k, marks=pytest.mark.slow)
                       for k in ('ragged', 'examples', 'dataset'))]
)  # fmt: skip
def test_cuts_of_blocks_change_no_bit(kind, monkeypatch):
  make = datasets()[kind]
  steps = 36
  whole, _ = trained('block', steps, make(), make_task(dropout=0.3))
  _cut(monkeypatch, 3)
  often, _ = trained('block', steps, make(), make_task(dropout=0.3))
  one_by_one = tftrain.Trainer(
    make_task(dropout=0.3),
    make(),
    steps_per_loop=1,
    log_every=100,
    update=tftrain.Update(jit='block'),
  )
  one_by_one.train(10)
  one_by_one.train(steps)
  assert whole.step == often.step == one_by_one.step
  assert_same_bits(whole, often)
  assert_same_bits(whole, one_by_one)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['arrays', 'ragged', 'examples', 'dataset'])
def test_a_restored_run_is_an_unbroken_one(kind):
  make = datasets()[kind]
  whole, _ = trained('block', 30, make(), make_task(dropout=0.3))
  first, _ = trained('block', 13, make(), make_task(dropout=0.3))
  state = state_of(first)
  second = tftrain.Trainer(
    make_task(dropout=0.3), make(), update=tftrain.Update(jit='block')
  )
  second.write_state(state)
  second.train(30)
  assert_same_bits(whole, second)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['arrays', 'examples', 'dataset'])
def test_batches_are_skipped_as_in_the_plain_loop(kind):
  runs = []
  for jit in ('off', 'block'):
    trainer = tftrain.Trainer(
      make_task(), datasets()[kind](), update=tftrain.Update(jit=jit)
    )
    trainer.skipped_steps.add(5, 8)
    trainer.train(20)
    runs.append(trainer)
  assert [run.updates for run in runs] == [16, 16]
  assert_close(*runs, 1e-6)


@pytest.mark.slow
def test_data_that_end_end_the_run_at_their_last_batch():
  def batches():
    x, y = arrays(40)
    for i in range(0, 40, 8):
      yield x[i : i + 8], y[i : i + 8]

  spec = (
    tf.TensorSpec([8, 6], tf.float32),
    tf.TensorSpec([8], tf.int64),
  )
  data = tftrain.data.DatasetPipeline(
    lambda: tf.data.Dataset.from_generator(batches, output_signature=spec),
    repeat=False,
  )
  runs = [trained(jit, 100, data, log_every=2)[0] for jit in ('off', 'block')]
  assert [run.step for run in runs] == [5, 5]
  assert_close(*runs, 1e-6)


def test_a_step_that_is_not_finite_ends_the_block_there():
  x, y = arrays()
  x[24:32] = np.nan  # step 4
  data = tftrain.Arrays((x, y), 8, training=False)
  runs = []
  for jit in ('off', 'block'):
    trainer = tftrain.Trainer(
      make_task(norm=True), data, update=tftrain.Update(jit=jit)
    )
    with error_lines.refused(errors.NonFiniteError, 'step 4', '[0, 0] is nan'):
      trainer.train(10)
    runs.append(trainer)
  assert [(run.step, run.updates) for run in runs] == [(4, 3), (4, 3)]
  assert_close(*runs, 1e-6)


@pytest.mark.slow
def test_steps_that_are_skipped_are_counted():
  x, y = arrays()
  x[24:32] = np.nan
  data = tftrain.Arrays((x, y), 8, training=False)
  runs = [
    trained(jit, 10, data, make_task(norm=True), max_skips=1)[0]
    for jit in ('off', 'block')
  ]
  assert [run.updates for run in runs] == [9, 9]
  assert_close(*runs, 1e-6)


def test_a_stop_ends_the_run_within_a_block():
  trainer = tftrain.Trainer(
    make_task(),
    tftrain.Arrays(arrays(), 8),
    log_every=10**6,
    steps_per_loop=10**6,
    update=tftrain.Update(jit='block'),
  )
  trainer.train(200)
  at_request = []

  def stop():
    at_request.append(int(trainer.task.optimizer.iterations.numpy()))
    trainer.request_stop()

  timer = threading.Timer(0.5, stop)
  timer.start()
  trainer.train(10**9)
  timer.join()
  assert at_request[0] > 200
  assert trainer.step - at_request[0] <= 2 * blocks.MOST


class Adversarial(tftrain.Task):
  """Two networks, one of them every second step."""

  def __init__(self):
    super().__init__()
    keras.utils.set_random_seed(0)
    self.generator = keras.Sequential([keras.Input((2,)), layers.Dense(6)])
    self.critic = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
    self.generator_optimizer = keras.optimizers.Adam(0.01)
    self.critic_optimizer = keras.optimizers.Adam(0.01)

  def critic_loss(self, batch, training):
    x, _ = batch
    made = self.critic(self.generator(x[:, :2]))
    return tftrain.Loss(made**2 + (self.critic(x) - 1.0) ** 2)

  def loss(self, batch, training):
    x, _ = batch
    return tftrain.Loss((self.critic(self.generator(x[:, :2])) - 1.0) ** 2)

  def train_step(self, batch):
    self.minimize(
      self.critic_loss, batch, self.critic, self.critic_optimizer, 'critic'
    )
    return self.minimize(
      self.loss,
      batch,
      self.generator,
      self.generator_optimizer,
      when=self.critic_optimizer.iterations % 2 == 0,
    )


class Sharpness(tftrain.SupervisedTask):
  """Two passes, with the weights moved between them."""

  def train_step(self, batch):
    here = self.gradients(self.loss, batch)
    for variable, gradient in zip(here.variables, here.values, strict=True):
      variable.assign_add(0.05 * gradient / here.norm)
    there = self.gradients(self.loss, batch)
    for variable, gradient in zip(here.variables, here.values, strict=True):
      variable.assign_sub(0.05 * gradient / here.norm)
    return self.apply(there)


def _sharpness():
  task = make_task()
  return Sharpness(task.model, task._loss, keras.optimizers.SGD(0.1))


@pytest.mark.slow
@pytest.mark.parametrize('make', [Adversarial, _sharpness])
def test_own_steps_are_the_same_in_a_block(make):
  runs = [trained(jit, 40, task=make())[0] for jit in ('off', 'block')]
  first, second = (state_of(run) for run in runs)
  for name, value in first.items():
    np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-5)


class Printed(tftrain.SupervisedTask):
  def loss(self, batch, training):
    made = super().loss(batch, training)
    text = tf.strings.as_string(made.values)
    return made * tf.cast(tf.reduce_all(tf.strings.length(text) > 0), 'float32')


def _printed():
  task = make_task()
  return Printed(task.model, task._loss, keras.optimizers.SGD(0.1))


class Named(tftrain.SupervisedTask):
  """Batches with a name that the model does not read."""

  def loss(self, batch, training):
    return super().loss(batch[:2], training)


def _named():
  task = make_task()
  return Named(task.model, task._loss, keras.optimizers.SGD(0.1))


_NAMES = np.array(['a', 'b'] * 48)
_REFUSED = {
  'two replicas': (None, make_task, "'block' is for one replica"),
  'strings': ((*arrays(), _NAMES), _named, 'batch[2] is string[8]'),
  'operation': (arrays(), _printed, 'XLA cannot compile the operation'),
}


@pytest.mark.parametrize(
  ('data', 'make', 'message'), _REFUSED.values(), ids=_REFUSED.keys()
)
def test_what_xla_cannot_compile_is_named(data, make, message):
  name = 'mirrored' if data is None else 'one_device'
  strategy = tftrain.make_strategy(name)
  with strategy.scope():
    task = make()
  with pytest.raises(errors.Error) as info:
    trainer = tftrain.Trainer(
      task,
      tftrain.Arrays(data or arrays(), 8),
      strategy=strategy,
      update=tftrain.Update(jit='block'),
    )
    trainer.train(1)
  assert message in str(info.value) and '\n' not in str(info.value)


def test_batches_of_varying_shape_are_refused():
  data = tf.data.Dataset.from_tensor_slices(arrays(20)).batch(8)
  with error_lines.refused(errors.ConfigError, 'static shapes', 'batch[0]'):
    small_tasks.trainer(data, make_task, update=tftrain.Update(jit='block'))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['arrays', 'dataset'])
def test_no_value_of_the_host_is_compiled_in(kind):
  """Else XLA would compile anew for each of them, at a second each."""
  trainer = tftrain.Trainer(
    make_task(), datasets()[kind](), update=tftrain.Update(jit='block')
  )
  trainer.prepare()
  loop = trainer.loop
  block, _ = trainer._iterator().at(0)
  stacked = trainer._feed.empty_block(block)
  programs = set()
  for offset, n in ((0, 1), (3, 1), (0, 7)):
    ir = loop._compiled.experimental_get_compiler_ir(
      block_loop._given(stacked, offset, 0, ()), tf.constant(n, tf.int64)
    )
    programs.add(ir(stage='hlo'))
  assert len(programs) == 1

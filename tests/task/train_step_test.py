"""Steps of all kinds: what research does between a batch and new weights."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
import tftrain
from tftrain.step import fused_variables

STRATEGIES = ('one_device', 'mirrored')
MIRRORED_SLOW = ('one_device', pytest.param('mirrored', marks=pytest.mark.slow))


def train(make_task, steps, strategy='one_device', data=None, **options):
  """A Trainer that has taken `steps` steps, and its last Report."""
  keras.utils.set_random_seed(3)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make_task()
  data = data or tftrain.Arrays(cases.arrays(), 8)
  update = tftrain.Update(**options)
  trainer = tftrain.Trainer(task, data, strategy=strategy, update=update)
  return trainer, trainer.train(steps)


def states(runs, leave_out=('trainer/means',)):
  """Their states, without the norms that sum in another order."""
  return [
    {k: v for k, v in cases.state_of(run).items() if k not in leave_out}
    for run in runs
  ]


def cross_entropy(y, logits):
  return keras.losses.sparse_categorical_crossentropy(
    y, logits, from_logits=True
  )


# Steps that a research project writes.


class Sharpness(tftrain.Task):
  """SAM (Foret et al. 2021): the gradient at the worst point nearby."""

  def loss(self, batch, training):
    x, y = batch
    return tftrain.Loss(cross_entropy(y, self.model(x, training=training)))

  def train_step(self, batch):
    here = self.gradients(self.loss, batch)
    before = [tf.convert_to_tensor(v) for v in here.variables]
    for variable, gradient in zip(here.variables, here.values, strict=True):
      variable.assign_add(0.05 * gradient / here.norm)
    there = self.gradients(self.loss, batch)
    for variable, value in zip(here.variables, before, strict=True):
      variable.assign(value)
    return self.apply(there)


class ClippedCritic(Sharpness):
  """Clips weights after each update, as the first Wasserstein GANs did."""

  def train_step(self, batch):
    step = self.minimize(self.loss, batch)
    for variable in self.model.trainable_variables:
      variable.assign(tf.clip_by_value(variable, -0.1, 0.1))
    return step


class Sometimes(Sharpness):
  """Assigns a weight inside its loss, in a branch that build never takes."""

  def __init__(self, model, optimizer):
    super().__init__(model, optimizer)
    self.calls = keras.Variable(0, trainable=False, dtype='int64')

  def loss(self, batch, training):
    if training:
      self.calls.assign_add(1)
      if self.calls > 4:
        bias = self.model.layers[0].bias
        bias.assign(0.5 * bias)
    return super().loss(batch, training)

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


class Penalized(Sharpness):
  """A penalty on the gradient by the inputs: a tape in a tape."""

  def loss(self, batch, training):
    x, y = batch
    with tf.GradientTape() as tape:
      tape.watch(x)
      values = cross_entropy(y, self.model(x, training=training))
    slopes = tape.gradient(values, x)  # [batch, features]
    return tftrain.Loss(values + 0.1 * tf.reduce_sum(slopes**2, -1))

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


class Adversaries(tftrain.Task):
  """Two models, two optimizers; the second moves every third step."""

  def __init__(self):
    super().__init__()
    self.critic = cases.model(classes=1)
    self.generator = cases.model(features=4, classes=6)
    self.critic_optimizer = keras.optimizers.SGD(0.05)
    self.generator_optimizer = keras.optimizers.Adam(0.01)

  def critic_loss(self, batch, training):
    x, _ = batch
    fake = self.generator(x[:, :4], training=training)
    gap = self.critic(fake, training=training) - self.critic(x)
    return tftrain.Loss(gap[:, 0] + gap[:, 0] ** 2)

  def generator_loss(self, batch, training):
    x, _ = batch
    fake = self.generator(x[:, :4], training=training)
    return tftrain.Loss(-self.critic(fake, training=training)[:, 0])

  def loss(self, batch, training):
    return self.critic_loss(batch, training)

  def train_step(self, batch):
    self.minimize(
      self.generator_loss,
      batch,
      self.generator.trainable_variables,
      self.generator_optimizer,
      name='generator',
      when=self.critic_optimizer.iterations % 3 == 0,
    )
    return self.minimize(
      self.critic_loss,
      batch,
      self.critic.trainable_variables,
      self.critic_optimizer,
      name='critic',
    )


class Heads(tftrain.Task):
  """A trunk with two heads, each trained on data of its own."""

  def __init__(self):
    super().__init__(optimizer=keras.optimizers.Adam(0.01))
    self.trunk = keras.Sequential([keras.layers.Dense(8, 'relu')])
    self.heads = [keras.layers.Dense(3), keras.layers.Dense(2)]

  def head_loss(self, index):
    def loss(batch, training):
      x, y = batch
      logits = self.heads[index](self.trunk(x, training=training))
      return tftrain.Loss(cross_entropy(y, logits))

    return loss

  def train_step(self, batch):
    self.minimize(self.head_loss(0), batch['three'], name='three')
    return self.minimize(self.head_loss(1), batch['two'], name='two')


class Distilled(Sharpness):
  """A student that follows a teacher who does not move."""

  def __init__(self, model, optimizer):
    super().__init__(model, optimizer)
    self.teacher = cases.model()
    self.teacher.trainable = False

  def loss(self, batch, training):
    x, _ = batch
    wanted = tf.nn.softmax(self.teacher(x))
    logits = self.model(x, training=training)
    return tftrain.Loss(tf.nn.softmax_cross_entropy_with_logits(wanted, logits))

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


def of(kind, optimizer=keras.optimizers.Adam):
  return lambda: kind(cases.model(), optimizer(0.01))


def two_sets():
  x, y = cases.arrays()
  batch = {'three': (x[:12], y[:12]), 'two': (x[20:26], y[20:26] // 2)}
  return [batch]


@pytest.mark.parametrize(
  ('make', 'data'),
  [
    pytest.param(of(Sharpness), None, marks=pytest.mark.slow),
    (of(ClippedCritic), None),
    (of(Penalized), None),
    (Adversaries, None),
    pytest.param(Heads, two_sets(), marks=pytest.mark.slow),
    pytest.param(of(Distilled), None, marks=pytest.mark.slow),
  ],
  ids=['sam', 'weight clipping', 'penalty', 'gan', 'heads', 'distillation'],
)
def test_a_research_step_is_the_same_on_one_replica_and_two(make, data):
  runs = [train(make, 12, name, data) for name in STRATEGIES]
  (one, report), (two, other) = runs
  assert report.scalars.keys() == other.scalars.keys()
  # Adam turns a rounding error of a gradient near zero into one of its rate.
  cases.assert_close(*states([one, two]), 2e-5)


@pytest.mark.parametrize('kind', [Sharpness, ClippedCritic, Sometimes])
@pytest.mark.parametrize('strategy', MIRRORED_SLOW)
def test_weights_assigned_in_a_step_are_kept_with_buckets_and_without(
  kind, strategy, monkeypatch
):
  together, _ = train(of(kind), 12, strategy, ema=0.9)
  monkeypatch.setattr(fused_variables, 'is_small', lambda *_: False)
  apart, _ = train(of(kind), 12, strategy, ema=0.9)
  # SAM divides by the norm, which sums in another order.
  cases.assert_close(*states([together, apart]), 1e-6)
  if kind is not Sharpness:
    cases.assert_same_bits(*states([together, apart]))


@pytest.mark.slow
def test_the_other_optimizer_leaves_its_weights_alone():
  trainer, report = train(Adversaries, 7)
  generator = trainer.task.generator_optimizer.iterations.numpy()
  assert generator == 3 and trainer.updates == 7
  assert {'generator/loss', 'critic/loss'} < set(report.scalars)


def test_a_teacher_does_not_move():
  trainer, _ = train(of(Distilled), 5)
  keras.utils.set_random_seed(3)
  fresh = of(Distilled)()
  for ours, theirs in zip(
    trainer.task.teacher.get_weights(), fresh.teacher.get_weights(), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


class Branching(Sharpness):
  def train_step(self, batch):
    if tf.reduce_sum(batch[0]) > 0:
      step = self.minimize(self.loss, batch)
    else:
      step = self.minimize(self.loss, batch)
    return step


def test_an_update_inside_a_branch_is_refused_and_when_is_named():
  with pytest.raises(tftrain.Error, match='when=condition'):
    train(of(Branching), 1)


# Buckets and groups.


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.slow
def test_buckets_keep_groups_apart(strategy, monkeypatch):
  options = {
    'rates': {'dense_1': 10.0},
    'no_decay': 'bias',
    'clip_value': 0.01,
    'ema': 0.9,
  }
  make = lambda: cases.supervised(keras.optimizers.AdamW(0.01, 0.1))
  together, report = train(make, 30, strategy, **options)
  monkeypatch.setattr(fused_variables, 'is_small', lambda *_: False)
  apart, _ = train(make, 30, strategy, **options)
  cases.assert_same_bits(*states([together, apart]))
  assert report.scalars['learning_rate/dense_1'] == pytest.approx(0.1)
  assert report.scalars['learning_rate'] == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
  'optimizer', ['AdamW', pytest.param('Nadam', marks=pytest.mark.slow)]
)
def test_a_run_saved_with_buckets_goes_on_without_and_back(
  optimizer, tmp_path, monkeypatch
):
  make = lambda: cases.supervised(getattr(keras.optimizers, optimizer)(0.01))
  whole, _ = train(make, 30, ema=0.9)
  first, _ = train(make, 10, ema=0.9)
  tftrain.Checkpointer(tmp_path, first)(cases.report(10))
  with monkeypatch.context() as patch:
    patch.setattr(fused_variables, 'is_small', lambda *_: False)
    second, _ = train(make, 0, ema=0.9)
    assert tftrain.Checkpointer(tmp_path, second).restore() == 10
    cases.assert_same_bits(cases.state_of(first), cases.state_of(second))
    second.train(20)
    tftrain.Checkpointer(tmp_path, second)(cases.report(20))
  third, _ = train(make, 0, ema=0.9)
  assert tftrain.Checkpointer(tmp_path, third).restore() == 20
  third.train(30)
  cases.assert_same_bits(*states([whole, third]))


@pytest.mark.parametrize(
  'name',
  'SGD Adam AdamW Nadam RMSprop Adagrad Adadelta Adamax Lion Ftrl Adafactor '
  'Lamb Muon'.split(),
)
def test_every_optimizer_does_what_keras_does(name):
  make = getattr(keras.optimizers, name)
  trainer, _ = train(lambda: cases.supervised(make(0.01)), 3)
  keras.utils.set_random_seed(3)
  task = cases.supervised(make(0.01))
  data = trainer.pipeline
  for step in range(3):
    x, y = data.batch(0, tf.constant(step, tf.int64))
    with tf.GradientTape() as tape:
      value = tf.reduce_mean(cross_entropy(y, task.model(x, training=True)))
    weights = task.model.trainable_variables
    task.optimizer.apply(tape.gradient(value, weights), weights)
  for ours, theirs in zip(
    trainer.task.model.get_weights(), task.model.get_weights(), strict=True
  ):
    # Lion and Muon look at signs and directions of tiny gradients.
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_constraints_hold():
  def make():
    layer = keras.layers.Dense(3, kernel_constraint=keras.constraints.NonNeg())
    model = keras.Sequential([keras.Input((6,)), layer])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD(0.5))

  trainer, _ = train(make, 5)
  assert trainer.task.model.layers[0].kernel.numpy().min() == 0.0


# Moving averages.


def test_an_evaluation_with_averages_leaves_training_alone():
  make = lambda: cases.supervised(keras.optimizers.Adam(0.05))
  quiet, _ = train(make, 20, ema=0.9)
  watched, _ = train(make, 10, ema=0.9)
  data = tftrain.Arrays(cases.arrays(), 8, training=False)
  evaluator = tftrain.Evaluator(watched.task, data)
  averaged = evaluator.evaluate()['loss']
  with pytest.raises(RuntimeError), watched.task.averaged():
    inside = watched.task.model.get_weights()
    raise RuntimeError
  for one, other in zip(inside, watched.task.model.get_weights(), strict=True):
    assert (one != other).any()
  watched.train(20)
  cases.assert_same_bits(*states([quiet, watched]))
  assert averaged != pytest.approx(evaluator.evaluate()['loss'])


class Noisy(Sharpness):
  """Draws noise, in evaluations too."""

  def __init__(self, model, optimizer):
    super().__init__(model, optimizer)
    self.seeds = keras.random.SeedGenerator(7)

  def loss(self, batch, training):
    x, y = batch
    x += 0.1 * keras.random.normal(tf.shape(x), seed=self.seeds)
    return super().loss((x, y), training)

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


@pytest.mark.slow
def test_an_evaluation_that_draws_noise_leaves_training_alone():
  quiet, _ = train(of(Noisy), 6)
  watched, _ = train(of(Noisy), 3)
  data = tftrain.Arrays(cases.arrays(), 8, training=False)
  tftrain.Evaluator(watched.task, data).evaluate()
  watched.train(6)
  cases.assert_same_bits(*states([quiet, watched]))


def test_before_the_first_update_the_average_is_the_weights():
  trainer, _ = train(cases.supervised, 0, ema=0.9)
  weights = trainer.task.model.get_weights()
  with trainer.task.averaged():
    for one, other in zip(
      weights, trainer.task.model.get_weights(), strict=True
    ):
      np.testing.assert_array_equal(one, other)


# Batch normalization and dropout on replicas.


def normalized(dropout=0.0):
  layers = [
    keras.Input((6,)),
    keras.layers.Dense(8),
    keras.layers.BatchNormalization(),
    keras.layers.Dropout(dropout),
    keras.layers.Dense(3),
  ]
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  optimizer = keras.optimizers.SGD(0.05)
  return tftrain.SupervisedTask(keras.Sequential(layers), loss, optimizer)


def test_batch_normalization_sees_the_whole_batch_on_two_replicas():
  data = tftrain.Arrays(cases.arrays(), 8, epochs=1)  # ends with 3 rows
  runs = [train(normalized, 9, name, data)[0] for name in STRATEGIES]
  cases.assert_close(*states(runs), 2e-6)
  alone, _ = train(normalized, 9, 'mirrored', data, sync_batch_norm=False)
  name = 'model/sequential/batch_normalization/moving_variance'
  together = cases.state_of(runs[0])[name]
  assert np.abs(cases.state_of(alone)[name] - together).max() > 1e-3


def test_dropout_masks_differ_between_replicas_and_repeat():
  seen = {}
  x, y = cases.arrays(8)
  same_rows = (np.repeat(x[:1], 8, 0), np.repeat(y[:1], 8, 0))
  for name in STRATEGIES:
    make = lambda: cases.supervised(dropout=0.4)
    runs = [train(make, 5, name, [same_rows])[0] for _ in range(2)]
    cases.assert_same_bits(*states(runs, ()))
    seen[name] = cases.state_of(runs[0])['model/sequential/dense/kernel']
  # With equal masks the gradient of four equal rows twice is that of eight.
  assert np.abs(seen['one_device'] - seen['mirrored']).max() > 1e-6


def test_replicas_draw_different_seeds():
  strategy = tftrain.make_strategy('mirrored')
  with strategy.scope():
    task = normalized(dropout=0.5)
    generator = task.model.layers[2].seed_generator
    trainer = tftrain.Trainer(
      task, tftrain.Arrays(cases.arrays(), 8), strategy=strategy
    )

  @tf.function
  def draw():
    with trainer.task.engine.calls():
      return strategy.run(generator.next)

  first, second = strategy.experimental_local_results(draw())
  assert (first.numpy() != second.numpy()).any()


# Rematerialisation, XLA, precision.


@pytest.mark.parametrize('strategy', MIRRORED_SLOW)
def test_xla_gives_the_same(strategy):
  # No dropout: XLA has random numbers of its own.
  make = lambda: cases.supervised(
    metrics={'keras': keras.metrics.SparseCategoricalAccuracy()}
  )
  options = {'clip_norm': 0.5, 'ema': 0.9, 'accumulate': 2}
  plain, report = train(make, 12, strategy, **options)
  compiled, other = train(make, 12, strategy, jit=True, **options)
  cases.assert_close(*states([plain, compiled]), 1e-5)
  cases.assert_close(report.scalars, other.scalars, 1e-5)


@pytest.mark.slow
def test_xla_and_synchronized_batch_normalization_exclude_each_other():
  with pytest.raises(tftrain.Error, match='Update.jit: XLA cannot hold'):
    train(normalized, 1, 'mirrored', jit=True)
  train(normalized, 1, 'mirrored', jit=True, sync_batch_norm=False)


@pytest.mark.parametrize('precision', ['mixed_bfloat16', 'mixed_float16'])
def test_mixed_precision_trains_close_to_full(precision, tmp_path):
  losses = {}
  for name in ('float32', precision):
    experiment = tftrain.Experiment(
      lambda: cases.supervised(keras.optimizers.Adam(0.01)),
      lambda: tftrain.Arrays(cases.arrays(), 16),
      steps=150,
      precision=name,
      export=False,
    )
    run = experiment.prepare(tmp_path / name)
    losses[name] = run.train().scalars['train/loss']
    assert run.trainer.task.model.layers[0].compute_dtype == (
      name.removeprefix('mixed_')
    )
  assert losses[precision] == pytest.approx(losses['float32'], rel=0.2)
  scale = run.trainer.task.engine.scalars().get('loss_scale')
  assert (scale is not None) == (precision == 'mixed_float16')
  assert keras.config.dtype_policy().name == 'float32'


def test_a_step_that_fails_leaves_batch_statistics_as_they_were():
  x, y = cases.arrays(24)
  good, bad = (x[:8], y[:8]), (np.full_like(x[:8], np.inf), y[:8])
  for strategy in STRATEGIES:
    trainer, _ = train(normalized, 1, strategy, [good, bad])
    before = cases.state_of(trainer)
    with pytest.raises(tftrain.errors.NonFiniteError, match='step 2'):
      trainer.train(2)
    for name, value in cases.state_of(trainer).items():
      if name.startswith(('model/', 'optimizer/')):
        np.testing.assert_array_equal(value, before[name], err_msg=name)


# AutoGraph, and variables that hide.


class Halving(keras.layers.Layer):
  """Halves its inputs until they are small: how often depends on the data."""

  def __init__(self):
    super().__init__()
    self.gain = self.add_weight(shape=(), initializer='ones')

  def call(self, x):
    x = x * self.gain
    while tf.reduce_max(tf.abs(x)) > 1.0:
      x = x / 2.0
    if tf.reduce_sum(x) > 0:
      x = -x
    return x


class HalvingModule(tf.Module):
  def __init__(self):
    super().__init__()
    self.dense = keras.layers.Dense(3)
    self.gain = tf.Variable(1.0)

  def __call__(self, x, training=False):
    x = x * self.gain
    total = tf.zeros_like(x)
    for index in tf.range(tf.shape(x)[1] // 2):
      total += x / tf.cast(index + 1, tf.float32)
    while tf.reduce_max(tf.abs(total)) > 1.0:
      total = total / 2.0
    return self.dense(total)


class Layered(keras.Model):
  def __init__(self):
    super().__init__()
    self.halving = Halving()
    self.dense = keras.layers.Dense(3)

  def call(self, x, training=False):
    return self.dense(self.halving(x))


@pytest.mark.parametrize('model', [HalvingModule, Layered])
@pytest.mark.parametrize('strategy', STRATEGIES)
def test_control_flow_on_data_compiles_in_layers_and_modules(model, strategy):
  def make():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model(), loss, keras.optimizers.SGD(0.1))

  compiled, _ = train(make, 5, strategy)
  tf.config.run_functions_eagerly(True)
  try:
    eager, _ = train(make, 5, strategy)
  finally:
    tf.config.run_functions_eagerly(False)
  cases.assert_close(*states([compiled, eager]), 1e-6)
  assert 'call' not in vars(compiled.task.model)


class Hiding:
  """Neither a layer nor a module: nobody looks inside."""

  def __init__(self):
    self.scale = tf.Variable(2.0, name='secret')


class Mixed(keras.layers.Layer):
  """A Keras layer with a module in a list, and a plain object."""

  def __init__(self):
    super().__init__()
    self.parts = [HalvingModule()]
    self.hiding = Hiding()
    self.idle = self.add_weight(shape=(2,), name='idle')

  def call(self, x):
    return self.parts[0](x) * self.hiding.scale


def test_variables_that_hide_or_idle_are_named(caplog):
  make = lambda: Sharpness(Mixed(), keras.optimizers.SGD(0.1))
  with caplog.at_level(logging.WARNING):
    trainer, _ = train(make, 1)
  assert 'No gradient reaches model/mixed/idle; nothing' in caplog.text
  assert 'Sharpness reads variables that are hidden from it (secret' in (
    caplog.text
  )
  names = trainer.task.engine.appliers()['optimizer'].trained
  assert 'model/parts/0/gain' in names
  assert 'model/parts/0/dense/mixed/dense/kernel' in names


def test_zero_gradients_are_named_at_step_one(caplog):
  def make():
    relu = keras.layers.Dense(
      4, 'relu', bias_initializer=keras.initializers.Constant(-1000.0)
    )
    model = keras.Sequential([keras.Input((6,)), relu, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD(0.1))

  with caplog.at_level(logging.WARNING):
    train(make, 100)
  for step in (1, 100):
    assert (
      f'Step {step}: the gradient of model/sequential/dense/kernel, '
      'model/sequential/dense/bias, model/sequential/dense_1/kernel is zero'
    ) in caplog.text

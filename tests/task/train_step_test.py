"""train_step of the user's own: research steps on one replica and on two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain.step import fused_variables


class ClippedCritic(step_runs.Sharpness):
  """Clips weights after each update, as the first Wasserstein GANs did."""

  def train_step(self, batch):
    step = self.minimize(self.loss, batch)
    for variable in self.model.trainable_variables:
      variable.assign(tf.clip_by_value(variable, -0.1, 0.1))
    return step


class Sometimes(step_runs.Sharpness):
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


class Penalized(step_runs.Sharpness):
  """A penalty on the gradient by the inputs: a tape in a tape."""

  def loss(self, batch, training):
    x, y = batch
    with tf.GradientTape() as tape:
      tape.watch(x)
      values = step_runs.cross_entropy(y, self.model(x, training=training))
    slopes = tape.gradient(values, x)  # [batch, features]
    return tftrain.Loss(values + 0.1 * tf.reduce_sum(slopes**2, -1))

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


class Adversaries(tftrain.Task):
  """Two models, two optimizers; the second moves every third step."""

  def __init__(self):
    super().__init__()
    self.critic = small_tasks.model(classes=1)
    self.generator = small_tasks.model(features=4, classes=6)
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
      return tftrain.Loss(step_runs.cross_entropy(y, logits))

    return loss

  def train_step(self, batch):
    self.minimize(self.head_loss(0), batch['three'], name='three')
    return self.minimize(self.head_loss(1), batch['two'], name='two')


class Distilled(step_runs.Sharpness):
  """A student that follows a teacher who does not move."""

  def __init__(self, model, optimizer):
    super().__init__(model, optimizer)
    self.teacher = small_tasks.model()
    self.teacher.trainable = False

  def loss(self, batch, training):
    x, _ = batch
    wanted = tf.nn.softmax(self.teacher(x))
    logits = self.model(x, training=training)
    return tftrain.Loss(tf.nn.softmax_cross_entropy_with_logits(wanted, logits))

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


def two_sets():
  x, y = small_tasks.arrays()
  batch = {'three': (x[:12], y[:12]), 'two': (x[20:26], y[20:26] // 2)}
  return [batch]


@pytest.mark.parametrize(
  ('make', 'data'),
  [
    pytest.param(
      step_runs.of(step_runs.Sharpness), None, marks=pytest.mark.slow
    ),
    (step_runs.of(ClippedCritic), None),
    (step_runs.of(Penalized), None),
    (Adversaries, None),
    pytest.param(Heads, two_sets(), marks=pytest.mark.slow),
    pytest.param(step_runs.of(Distilled), None, marks=pytest.mark.slow),
  ],
  ids=['sam', 'weight clipping', 'penalty', 'gan', 'heads', 'distillation'],
)
def test_a_research_step_is_the_same_on_one_replica_and_two(make, data):
  runs = [
    step_runs.train(make, 12, name, data) for name in step_runs.STRATEGIES
  ]
  (one, report), (two, other) = runs
  assert report.scalars.keys() == other.scalars.keys()
  # Adam turns a rounding error of a gradient near zero into one of its rate.
  small_tasks.assert_close(*step_runs.states([one, two]), 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind', [step_runs.Sharpness, ClippedCritic, Sometimes]
)
@pytest.mark.parametrize('strategy', step_runs.MIRRORED_SLOW)
def test_weights_assigned_in_a_step_are_kept_with_buckets_and_without(
  kind, strategy, monkeypatch
):
  together, _ = step_runs.train(step_runs.of(kind), 12, strategy, ema=0.9)
  monkeypatch.setattr(fused_variables, 'is_small', lambda *_: False)
  apart, _ = step_runs.train(step_runs.of(kind), 12, strategy, ema=0.9)
  # SAM divides by the norm, which sums in another order.
  small_tasks.assert_close(*step_runs.states([together, apart]), 1e-6)
  if kind is not step_runs.Sharpness:
    small_tasks.assert_same_bits(*step_runs.states([together, apart]))


@pytest.mark.slow
def test_the_other_optimizer_leaves_its_weights_alone():
  trainer, report = step_runs.train(Adversaries, 7)
  generator = trainer.task.generator_optimizer.iterations.numpy()
  assert generator == 3 and trainer.updates == 7
  assert {'generator/loss', 'critic/loss'} < set(report.scalars)


def test_a_teacher_does_not_move():
  trainer, _ = step_runs.train(step_runs.of(Distilled), 5)
  keras.utils.set_random_seed(3)
  fresh = step_runs.of(Distilled)()
  for ours, theirs in zip(
    trainer.task.teacher.get_weights(), fresh.teacher.get_weights(), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


class Branching(step_runs.Sharpness):
  def train_step(self, batch):
    if tf.reduce_sum(batch[0]) > 0:
      step = self.minimize(self.loss, batch)
    else:
      step = self.minimize(self.loss, batch)
    return step


def test_an_update_inside_a_branch_is_refused_and_when_is_named():
  with pytest.raises(tftrain.Error, match='when=condition'):
    step_runs.train(step_runs.of(Branching), 1)

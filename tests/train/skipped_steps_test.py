"""Skipped steps: nothing changes but the count."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import bad_batches
from tests.support import small_tasks
import tftrain
from tftrain import errors

# What a step that is left out may change.
_MOVED = {
  f'trainer/{name}'
  for name in (
    'step skipped_steps skipped_in_a_row reported last_logged means cursor '
    'iterator'
  ).split()
}


def changed(before, after):
  """The names of what differs, but for the states of dropouts."""
  return {
    name
    for name, value in before.items()
    if not np.array_equal(value, after[name]) and 'seed' not in name
  }


def assert_step_10_is_left_out(trainer):
  trainer.train(9)
  before = small_tasks.state_of(trainer)
  trainer.train(10)
  after = small_tasks.state_of(trainer)
  assert changed(before, after) <= _MOVED
  assert (trainer.step, trainer.updates) == (10, 9)


@pytest.mark.parametrize('replicas', [1, 2])
def test_a_skipped_step_changes_nothing_but_the_count(replicas):
  strategy = tftrain.make_strategy('mirrored' if replicas > 1 else 'one_device')
  with strategy.scope():
    task = small_tasks.supervised(dropout=0.2)
  trainer = tftrain.Trainer(
    task,
    bad_batches.one_bad(10),
    strategy=strategy,
    log_every=50,
    update=tftrain.Update(max_skips=2, ema=0.9),
  )
  assert_step_10_is_left_out(trainer)
  report = trainer.train(50)
  assert report.scalars['skipped_steps'] == 1
  assert np.isfinite(report.scalars['loss'])


class Pair(tftrain.Task):
  """Two models and optimizers; only the second one's loss sees the labels."""

  def __init__(self):
    super().__init__()
    self.first, self.second = (
      small_tasks.model(dropout=0.2),
      small_tasks.model(),
    )
    self.fast = keras.optimizers.Adam(0.01)
    self.slow = keras.optimizers.SGD(0.1, momentum=0.9)

  def one(self, batch, training):
    outputs = self.first(batch[0], training=training)
    return tftrain.Loss(tf.reduce_mean(outputs**2, 1))

  def loss(self, batch, training):
    outputs = self.second(batch[0], training=training)
    return tftrain.Loss(tf.reduce_mean(outputs**2, 1) * batch[1] ** 2)

  def train_step(self, batch):
    first, second = self.first, self.second
    self.minimize(
      self.one, batch, first.trainable_variables, self.fast, name='first'
    )
    return self.minimize(
      self.loss, batch, second.trainable_variables, self.slow
    )


@pytest.mark.parametrize(
  'replicas', [pytest.param(1, marks=pytest.mark.slow), 2]
)
def test_all_updates_of_a_skipped_step_are_taken_back(replicas):
  """The first one is done, and its slots and average are changed, when the
  second one fails."""
  strategy = tftrain.make_strategy('mirrored' if replicas > 1 else 'one_device')
  with strategy.scope():
    task = Pair()
  x, y = small_tasks.arrays()
  y = y.astype('float32')
  batches = [(x[i % 60 :][:8], y[i % 60 :][:8]) for i in range(40)]
  batches[9] = (batches[9][0], batches[9][1] * np.nan)
  trainer = tftrain.Trainer(
    task,
    batches,
    strategy=strategy,
    log_every=40,
    update=tftrain.Update(max_skips=2, ema=0.9, rates={'first': 2.0}),
  )
  assert_step_10_is_left_out(trainer)
  report = trainer.train(40)
  assert report.scalars['skipped_steps'] == 1
  assert np.isfinite(report.scalars['first/loss'])
  assert np.isfinite(report.scalars['loss'])


def test_more_in_a_row_than_allowed_end_the_run():
  batches = bad_batches.one_bad(10)
  for step in (11, 12):
    batches[step - 1] = batches[9]
  trainer = tftrain.Trainer(
    small_tasks.supervised(), batches, update=tftrain.Update(max_skips=2)
  )
  with pytest.raises(errors.NonFiniteError, match='step 12'):
    trainer.train(20)

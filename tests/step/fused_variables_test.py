"""Fused variables: groups stay apart, checkpoints move between both layouts."""

import keras
import numpy as np
import pytest

from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain.step import fused_variables


@pytest.mark.parametrize('strategy', step_runs.STRATEGIES)
@pytest.mark.slow
def test_buckets_keep_groups_apart(strategy, monkeypatch):
  options = {
    'rates': {'dense_1': 10.0},
    'no_decay': 'bias',
    'clip_value': 0.01,
    'ema': 0.9,
  }
  make = lambda: small_tasks.supervised(keras.optimizers.AdamW(0.01, 0.1))
  together, report = step_runs.train(make, 30, strategy, **options)
  monkeypatch.setattr(fused_variables, 'is_small', lambda *_: False)
  apart, _ = step_runs.train(make, 30, strategy, **options)
  small_tasks.assert_same_bits(*step_runs.states([together, apart]))
  assert report.scalars['learning_rate/dense_1'] == pytest.approx(0.1)
  assert report.scalars['learning_rate'] == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
  'optimizer', ['AdamW', pytest.param('Nadam', marks=pytest.mark.slow)]
)
def test_a_run_saved_with_buckets_goes_on_without_and_back(
  optimizer, tmp_path, monkeypatch
):
  make = lambda: small_tasks.supervised(
    getattr(keras.optimizers, optimizer)(0.01)
  )
  whole, _ = step_runs.train(make, 30, ema=0.9)
  first, _ = step_runs.train(make, 10, ema=0.9)
  tftrain.Checkpointer(tmp_path, first)(small_tasks.report(10))
  with monkeypatch.context() as patch:
    patch.setattr(fused_variables, 'is_small', lambda *_: False)
    second, _ = step_runs.train(make, 0, ema=0.9)
    assert tftrain.Checkpointer(tmp_path, second).restore() == 10
    small_tasks.assert_same_bits(
      small_tasks.state_of(first), small_tasks.state_of(second)
    )
    second.train(20)
    tftrain.Checkpointer(tmp_path, second)(small_tasks.report(20))
  third, _ = step_runs.train(make, 0, ema=0.9)
  assert tftrain.Checkpointer(tmp_path, third).restore() == 20
  third.train(30)
  small_tasks.assert_same_bits(*step_runs.states([whole, third]))


class Nudged(tftrain.SupervisedTask):
  """Assigns one entry of a weight after each update."""

  def train_step(self, batch):
    step = self.minimize(self.loss, batch)
    bias = self.model.layers[0].bias.value
    bias[0].assign(bias[0] + 1.0)
    bias.scatter_nd_add([[1]], [2.0])
    return step


@pytest.mark.parametrize('steps_per_loop', [1, 100])
def test_an_entry_assigned_in_a_step_is_kept(steps_per_loop):
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  task = Nudged(small_tasks.model(), loss, keras.optimizers.SGD(1e-6))
  tftrain.Trainer(
    task, tftrain.Arrays(small_tasks.arrays(), 8), steps_per_loop=steps_per_loop
  ).train(5)
  bias = task.model.layers[0].bias.numpy()
  np.testing.assert_allclose(bias[:3], [5.0, 10.0, 0.0], atol=1e-4)

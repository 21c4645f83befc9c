"""The step runner: failed steps change nothing; XLA gives the same."""

import keras
import numpy as np
import pytest

from tests.support import error_lines
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_a_non_finite_step_changes_no_weight_and_no_slot(strategy):
  x, y = small_tasks.arrays(examples=32)
  bad = x[8:16].copy()
  bad[7] = np.inf  # on the last replica only
  run = small_tasks.trainer([(x[:8], y[:8]), (bad, y[8:16])], strategy=strategy)
  run.train(1)
  before = small_tasks.state_of(run)
  with error_lines.refused(errors.NonFiniteError, 'step 2'):
    run.train(5)
  after = small_tasks.state_of(run)
  assert (before.pop('trainer/step'), after.pop('trainer/step')) == (1, 2)
  before.pop('trainer/means'), after.pop('trainer/means')
  small_tasks.assert_same_bits(before, after)


@pytest.mark.parametrize('strategy', step_runs.MIRRORED_SLOW)
def test_xla_gives_the_same(strategy):
  # No dropout: XLA has random numbers of its own.
  make = lambda: small_tasks.supervised(
    metrics={'keras': keras.metrics.SparseCategoricalAccuracy()}
  )
  options = {'clip_norm': 0.5, 'ema': 0.9, 'accumulate': 2}
  plain, report = step_runs.train(make, 12, strategy, **options)
  compiled, other = step_runs.train(make, 12, strategy, jit='step', **options)
  small_tasks.assert_close(*step_runs.states([plain, compiled]), 1e-5)
  small_tasks.assert_close(report.scalars, other.scalars, 1e-5)


def test_a_step_that_fails_leaves_batch_statistics_as_they_were():
  x, y = small_tasks.arrays(24)
  good, bad = (x[:8], y[:8]), (np.full_like(x[:8], np.inf), y[:8])
  for strategy in step_runs.STRATEGIES:
    trainer, _ = step_runs.train(step_runs.normalized, 1, strategy, [good, bad])
    before = small_tasks.state_of(trainer)
    with pytest.raises(tftrain.errors.NonFiniteError, match='step 2'):
      trainer.train(2)
    for name, value in small_tasks.state_of(trainer).items():
      if name.startswith(('model/', 'optimizer/')):
        np.testing.assert_array_equal(value, before[name], err_msg=name)


class Poisoned(step_runs.Critic):
  def judge(self, batch, training):
    return tftrain.Loss(self.critic(batch[0])[:, 0] / 0.0)


def test_the_error_shows_the_loss_that_was_not_finite():
  with pytest.raises(
    tftrain.errors.NonFiniteError, match='loss (nan|inf|-inf)'
  ):
    step_runs.train(step_runs.of(Poisoned), 1)

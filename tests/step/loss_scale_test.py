"""Dynamic loss scale: an overflow changes only the scale."""

import keras
import numpy as np

from tests.support import numpy_network
from tests.support import numpy_trainer
from tests.support import small_tasks
import tftrain
from tftrain.step import _loss_scale


def _overflowing(steps, bad):
  """Batches of 8; those of the steps in `bad` overflow in their last rows.

  The loss is finite: the feature that is so large has weight 0, and stays
  there, for elsewhere it is 0.
  """
  x, y = small_tasks.arrays(8)
  x[:, 0] = 0.0
  too_large = x.copy()
  too_large[4:, 0] = 1e38
  return [(too_large if i in bad else x, y) for i in range(1, steps + 1)]


def _overflowing_task():
  task = small_tasks.supervised(keras.optimizers.SGD(0.05, momentum=0.9))
  kernel = task.model.layers[0].kernel
  kernel.assign(kernel.numpy() * (np.arange(6) > 0)[:, None])
  return task


@numpy_network.on_one_and_two
def test_a_step_that_overflows_changes_only_the_scale(strategy, monkeypatch):
  monkeypatch.setattr(_loss_scale, 'GROWTH_STEPS', 4)
  update = tftrain.Update(loss_scale='dynamic', ema=0.9)
  data = _overflowing(12, bad=[2, 8])
  trainer = numpy_network.trainer(
    _overflowing_task, data, strategy, update, log_every=1
  )
  states, scalars = [], []
  for report in trainer.steps(12):
    states.append(small_tasks.state_of(trainer))
    scalars.append(report.scalars)

  def seen(name):
    return [int(state[name]) for state in states]

  skipped = [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
  taken = [1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]
  # Half after a step that overflows, twice after four good ones in a row.
  scale = [1, 0.5, 0.5, 0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 1]
  assert seen('trainer/step') == list(range(1, 13))
  assert seen('trainer/updates') == seen('optimizer/iterations') == taken
  assert seen('trainer/skipped_steps') == skipped
  assert [s['skipped_steps'] for s in scalars] == skipped
  scale = [_loss_scale.INITIAL * factor for factor in scale]
  assert seen('optimizer/loss_scale/scale') == scale
  assert [s['loss_scale'] for s in scalars] == scale
  kept = [
    name
    for name in states[0]
    if name.startswith(('model/', 'optimizer/')) and 'loss_scale' not in name
  ]
  assert len(kept) >= 4 * 3  # weights, momentum, EMA
  for before, after, next_one in (states[0:3], states[6:9]):
    for name in kept:
      np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    for name in numpy_trainer.NAMES:
      assert np.abs(after[name] - next_one[name]).max() > 0
      assert np.isfinite(next_one[name]).all()

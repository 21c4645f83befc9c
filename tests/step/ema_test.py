"""Moving averages: their closed form, and their use in evaluation."""

import keras
import numpy as np
import pytest

from tests.support import numpy_network
from tests.support import numpy_trainer
from tests.support import small_tasks
from tests.support import step_runs
import tftrain


def test_an_evaluation_with_averages_leaves_training_alone():
  make = lambda: small_tasks.supervised(keras.optimizers.Adam(0.05))
  quiet, _ = step_runs.train(make, 20, ema=0.9)
  watched, _ = step_runs.train(make, 10, ema=0.9)
  data = tftrain.Arrays(small_tasks.arrays(), 8, training=False)
  evaluator = tftrain.Evaluator(watched.task, data)
  averaged = evaluator.evaluate()['loss']
  with pytest.raises(RuntimeError), watched.task.averaged():
    inside = watched.task.model.get_weights()
    raise RuntimeError
  for one, other in zip(inside, watched.task.model.get_weights(), strict=True):
    assert (one != other).any()
  watched.train(20)
  small_tasks.assert_same_bits(*step_runs.states([quiet, watched]))
  assert averaged != pytest.approx(evaluator.evaluate()['loss'])


def test_before_the_first_update_the_average_is_the_weights():
  trainer, _ = step_runs.train(small_tasks.supervised, 0, ema=0.9)
  weights = trainer.task.model.get_weights()
  with trainer.task.averaged():
    for one, other in zip(
      weights, trainer.task.model.get_weights(), strict=True
    ):
      np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@numpy_network.on_one_and_two
def test_the_average_is_its_closed_form_and_what_is_evaluated(strategy):
  strategy = tftrain.make_strategy(strategy)
  held_out = small_tasks.arrays(21, seed=5)
  update = tftrain.Update(ema=0.9, loss_scale='dynamic')
  make = lambda: small_tasks.supervised(keras.optimizers.SGD(0.3), dropout=0.3)
  data = tftrain.Arrays(small_tasks.arrays(), 8)

  def build():
    return numpy_network.trainer(make, data, strategy, update, log_every=1)

  def average(history):
    last = len(history) - 1
    total = 0.9**last * history[0]
    for step in range(1, last + 1):
      total += 0.1 * 0.9 ** (last - step) * history[step]
    return total

  trainer = build()
  evaluator = tftrain.Evaluator(
    trainer.task,
    tftrain.Arrays(held_out, 8, training=False),
    strategy=strategy,
  )
  weights = lambda: [
    w.astype('float64') for w in trainer.task.model.get_weights()
  ]

  def check(history, state):
    """Returns the loss at the averages."""
    averages = dict(
      zip(
        numpy_trainer.NAMES,
        map(average, zip(*history, strict=True)),
        strict=True,
      )
    )
    if len(history) > 1:
      for name, value in averages.items():
        np.testing.assert_allclose(
          state[f'optimizer/ema/{name}'], value, rtol=0, atol=1e-6
        )
    loss = numpy_network.numpy_run('sgd', 'plain', averages).mean_loss(
      held_out, averages
    )
    assert evaluator.evaluate()['loss'] == pytest.approx(loss, abs=1e-6)
    small_tasks.assert_same_bits(state, small_tasks.state_of(trainer))
    return loss

  history = [weights()]
  check(history, small_tasks.state_of(trainer))
  states = {}
  for report in trainer.steps(30):
    history.append(weights())
    if report.step in (1, 12, 30):
      states[report.step] = state = small_tasks.state_of(trainer)
      loss = check(history, state)
  raw = dict(zip(numpy_trainer.NAMES, history[-1], strict=True))
  loss_of_raw = numpy_network.numpy_run('sgd', 'plain', raw).mean_loss(
    held_out, raw
  )
  assert abs(loss - loss_of_raw) > 1e-3
  with pytest.raises(KeyError), trainer.task.averaged():
    for value, name in zip(weights(), numpy_trainer.NAMES, strict=True):
      np.testing.assert_array_equal(value, state[f'optimizer/ema/{name}'])
    raise KeyError
  small_tasks.assert_same_bits(state, small_tasks.state_of(trainer))
  # From a saved state, and without an evaluation in between.
  never_evaluated = build()
  never_evaluated.write_state(states[1])
  never_evaluated.train(30)
  small_tasks.assert_same_bits(state, small_tasks.state_of(never_evaluated))

"""examples/gan: draws digits, resumes, and trains on two devices."""

import numpy as np
import pytest
from sklearn import neighbors
import tensorflow as tf

from examples import digits
from examples import gan
from tests.support import example_runs
from tests.support import small_tasks
import tftrain


def make_gan():
  return gan.Gan(
    example_runs.adam(1e-3, beta_1=0.5), example_runs.adam(1e-3, beta_1=0.5)
  )


@pytest.mark.slow
def test_gan_draws_digits():
  update = tftrain.Update(ema=0.98)
  run = example_runs.trainer_of(make_gan, digits.train_data(64), update=update)
  before = example_runs.report_on(run.task, digits.test_data(359))
  run.train(500)
  after = example_runs.report_on(run.task, digits.test_data(359))
  assert after.scalars['loss'] < 0.1 < 2 < before.scalars['loss']
  with run.task.averaged():
    images = run.task.draw(500).numpy()
  judge = neighbors.KNeighborsClassifier(5).fit(*digits.load('train'))
  probabilities = judge.predict_proba(images)  # [500, digits]
  certain = probabilities.argmax(1)[probabilities.max(1) == 1.0]
  assert len(certain) > 150
  assert len(np.unique(certain)) >= 8
  (grid,) = after.artifacts['drawn'].numpy()
  assert grid.shape == (80, 80, 1)
  assert 0.0 <= grid.min() < 0.1 and 0.9 < grid.max() <= 1.0
  np.testing.assert_array_equal(grid[0], 0.0)  # the frame of the first row


@pytest.mark.slow
def test_gan_goes_on_with_the_noise_that_comes_next():
  one = example_runs.trainer_of(make_gan, digits.train_data(64))
  one.train(3)
  halfway = small_tasks.state_of(one)
  one.train(6)
  other = example_runs.trainer_of(make_gan, digits.train_data(64))
  other.write_state(halfway)
  other.train(6)
  small_tasks.assert_same_bits(
    small_tasks.state_of(one), small_tasks.state_of(other)
  )


@pytest.mark.slow
def test_gan_on_two_devices_trains_the_critic_twice_as_often(tmp_path):
  strategy = tftrain.make_strategy('mirrored')
  run = example_runs.trainer_of(make_gan, digits.train_data(64), strategy)
  run.train(5)
  state = small_tasks.state_of(run)
  assert state['critic_optimizer/iterations'] == 5
  assert state['generator_optimizer/iterations'] == 2
  report = example_runs.report_on(run.task, digits.test_data(), strategy)
  assert 0 < report.scalars['loss'] < 8
  assert report.artifacts['drawn'].shape == (1, 80, 80, 1)
  directory = tftrain.export.export_model(
    run.task, run.example_features(), tmp_path / 'export'
  )
  serve = tf.saved_model.load(str(directory)).signatures['serving_default']
  (images,) = serve(inputs=tf.random.normal([5, 16])).values()
  assert images.shape == (5, 64)

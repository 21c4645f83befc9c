"""The learning-rate finder: its suggestion, and the state it puts back."""

import csv
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import digits
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.debug import lr_finder

_CURVATURE = 4.0


class Quadratic(tftrain.Task):
  """Half the curvature times the squared distance to 1, and some noise.

  Gradient descent converges below 2 / curvature and diverges above.
  """

  def __init__(self, rate=0.1):
    super().__init__()
    self.weight = tf.Variable(tf.zeros([8]))
    self.optimizer = keras.optimizers.SGD(rate)

  def loss(self, batch, training):
    distance = self.weight - 1.0 - batch  # [batch, directions]
    return tftrain.Loss(0.5 * _CURVATURE * tf.reduce_sum(distance**2, -1))


def quadratic(**options):
  noise = np.random.RandomState(0).normal(scale=0.1, size=(200, 4, 8))
  return tftrain.Trainer(Quadratic(**options), list(noise.astype('float32')))


def digits_trainer(**options):
  task = digits.make_task(lambda: keras.optimizers.Adam(0.001), filters=8)
  data = tftrain.Arrays(digits.load('train'), 32)
  return tftrain.Trainer(task, data, **options)


def test_on_a_quadratic_it_suggests_what_converges():
  found = lr_finder.find(quadratic(), lowest=1e-4)
  assert 0.02 / _CURVATURE < found.suggestion < 2 / _CURVATURE
  assert found.rates[0] == 1e-4
  ratios = np.divide(found.rates[1:], found.rates[:-1])
  np.testing.assert_allclose(ratios, 1e5 ** (1 / 99))
  # It ends soon after the rate from which it diverges, not at the last one.
  assert 2 / _CURVATURE < found.rates[-1] < 10
  assert 'had risen far' in found.ended


@pytest.mark.slow
def test_the_state_is_put_back_to_the_bit():
  trainer = digits_trainer()
  trainer.train(7)
  before = small_tasks.state_of(trainer)
  lr_finder.find(trainer, steps=30)
  small_tasks.assert_same_bits(before, small_tasks.state_of(trainer))
  assert trainer.step == 7
  assert float(trainer.task.optimizer.learning_rate) == pytest.approx(0.001)
  # And what comes then is what would have come.
  keras.utils.set_random_seed(0)
  one = digits_trainer()
  one.train(7)
  lr_finder.find(one, steps=10)
  keras.utils.set_random_seed(0)
  two = digits_trainer()
  two.train(7)
  one.train(20)
  two.train(20)
  small_tasks.assert_same_bits(
    small_tasks.state_of(one), small_tasks.state_of(two)
  )


@pytest.mark.slow
def test_what_is_suggested_for_the_digits_learns_them():
  found = lr_finder.find(digits_trainer())
  assert 1e-4 < found.suggestion < 0.1
  rate = found.suggestion
  task = digits.make_task(lambda: keras.optimizers.Adam(rate), filters=8)
  data = tftrain.Arrays(digits.load('train'), 32)
  tftrain.Trainer(task, data).train(300)
  test = tftrain.Arrays(digits.load('test'), 100, training=False)
  assert tftrain.Evaluator(task, test).evaluate()['accuracy'] > 0.9


class Breaks(Quadratic):
  """Not finite as soon as the weights have moved far."""

  def loss(self, batch, training):
    value = tf.math.log(2.0 - tf.reduce_mean(self.weight))
    return tftrain.Loss(value + 0.0 * batch[:, 0])


def test_what_is_not_finite_ends_the_test_and_nothing_else():
  trainer = tftrain.Trainer(Breaks(), [np.ones((4, 1), 'float32')] * 200)
  before = small_tasks.state_of(trainer)
  found = lr_finder.find(trainer, lowest=1e-3, highest=1e4)
  assert 'not finite at ' in found.ended
  assert len(found.rates) < 100 and np.isfinite(found.losses).all()
  small_tasks.assert_same_bits(before, small_tasks.state_of(trainer))
  assert trainer.train(3).step == 3


def test_data_that_end_end_the_test():
  data = tftrain.data.DatasetPipeline(
    [np.ones((4, 8), 'float32')] * 12, repeat=False
  )
  trainer = tftrain.Trainer(Quadratic(), data)
  found = lr_finder.find(trainer)
  assert found.ended == 'the data ended' and len(found.rates) == 12
  assert trainer.step == 0


def test_what_it_cannot_test_is_refused():
  with pytest.raises(errors.ConfigError, match='0 < lowest < highest'):
    lr_finder.find(quadratic(), lowest=1.0, highest=0.1)
  schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
  with pytest.raises(errors.ConfigError, match='is a schedule; give a number'):
    lr_finder.find(quadratic(rate=schedule))
  with pytest.raises(errors.ConfigError, match='ends in .csv, .json, .png'):
    lr_finder.check_output('rates.txt')


def test_tables_and_plots_hold_all_steps(tmp_path):
  found = lr_finder.find(quadratic(), lowest=1e-4, steps=20)
  for name in ('a.csv', 'a.json', 'a.png'):
    lr_finder.write(found, str(tmp_path / name))
  rows = list(csv.DictReader((tmp_path / 'a.csv').open()))
  assert [float(row['learning_rate']) for row in rows] == list(found.rates)
  saved = json.loads((tmp_path / 'a.json').read_text())
  assert saved['suggestion'] == found.suggestion
  assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(errors.ConfigError, match=r'tftrain\[figures\]'):
    lr_finder.check_output('a.png')


@pytest.mark.slow
@pytest.mark.parametrize('config', ['digits', 'language'])  # with a schedule
def test_the_mode_leaves_nothing_behind(config, commands, tmp_path):
  run = tmp_path / 'run'
  ended = commands.run(
    f'--gin_file=configs/{config}.gin',
    '--mode=lr_find',
    f'--model_dir={run}',
    f'--output={tmp_path / "rates.csv"}',
  )
  assert ended.code == 0, ended
  assert 'Suggestion: a learning rate of ' in ended.stdout
  assert [path.name for path in tmp_path.iterdir()] == ['rates.csv']

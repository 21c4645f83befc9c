"""Examples that write a loss, a train_step or a loop of their own."""

import functools
import pathlib
import runpy
import subprocess
import sys

from absl import flags
import keras
import numpy as np
import pytest
from sklearn import neighbors
import tensorflow as tf

from examples import digits
from examples import distillation
from examples import focal
from examples import gan
from tests import cases
import tftrain
from tftrain.checkpoint import format

_ROOT = pathlib.Path(__file__).parent.parent
_OWN_LOOP = str(_ROOT / 'examples' / 'own_loop.py')


def trainer(make_task, data, strategy=None, **options):
  strategy = strategy or tf.distribute.get_strategy()
  with strategy.scope():
    task = make_task()
  return tftrain.Trainer(task, data, strategy=strategy, **options)


def report_on(task, data, strategy=None):
  """The Report of one evaluation."""
  found = []
  evaluator = tftrain.Evaluator(
    task, data, strategy=strategy, actions=[found.append]
  )
  evaluator(cases.report(1))
  (report,) = found
  return report


def adam(rate, **options):
  return functools.partial(keras.optimizers.Adam, rate, **options)


# GAN.


def make_gan():
  return gan.Gan(adam(1e-3, beta_1=0.5), adam(1e-3, beta_1=0.5))


@pytest.mark.slow
def test_gan_draws_digits():
  update = tftrain.Update(ema=0.98)
  run = trainer(make_gan, digits.train_data(64), update=update)
  before = report_on(run.task, digits.test_data(359))
  run.train(500)
  after = report_on(run.task, digits.test_data(359))
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
  one = trainer(make_gan, digits.train_data(64))
  one.train(3)
  halfway = cases.state_of(one)
  one.train(6)
  other = trainer(make_gan, digits.train_data(64))
  other.write_state(halfway)
  other.train(6)
  cases.assert_same_bits(cases.state_of(one), cases.state_of(other))


@pytest.mark.slow
def test_gan_on_two_devices_trains_the_critic_twice_as_often(tmp_path):
  strategy = tftrain.make_strategy('mirrored')
  run = trainer(make_gan, digits.train_data(64), strategy)
  run.train(5)
  state = cases.state_of(run)
  assert state['critic_optimizer/iterations'] == 5
  assert state['generator_optimizer/iterations'] == 2
  report = report_on(run.task, digits.test_data(), strategy)
  assert 0 < report.scalars['loss'] < 8
  assert report.artifacts['drawn'].shape == (1, 80, 80, 1)
  directory = tftrain.export.export_model(
    run.task, run.example_features(), tmp_path / 'export'
  )
  serve = tf.saved_model.load(str(directory)).signatures['serving_default']
  (images,) = serve(inputs=tf.random.normal([5, 16])).values()
  assert images.shape == (5, 64)


# Distillation.


@pytest.fixture(scope='module')
def teacher():
  keras.utils.set_random_seed(0)
  return distillation.make_teacher(300)


def make_student(teacher, hard):
  layers = [keras.layers.Dense(32, 'relu'), keras.layers.Dense(10)]
  student = keras.Sequential([keras.Input((64,)), *layers])
  return distillation.Distillation(teacher, student, adam(3e-3)(), hard=hard)


@pytest.mark.slow
def test_student_recognises_what_it_never_saw(teacher):
  before = [variable.numpy() for variable in teacher.variables]
  make_task = functools.partial(make_student, teacher, hard=0.1)
  run = trainer(make_task, distillation.train_data())
  run.train(1000)
  test = report_on(run.task, digits.test_data())
  unseen = report_on(run.task, distillation.unseen_data())
  assert test.scalars['teacher_accuracy'] > 0.96
  assert test.scalars['accuracy'] > 0.9
  assert unseen.scalars['accuracy'] > 0.6
  assert unseen.artifacts['differences'].shape == (8, 8, 18, 1)
  for value, variable in zip(before, teacher.variables, strict=True):
    np.testing.assert_array_equal(value, variable.numpy())


@pytest.mark.slow
def test_student_of_labels_alone_recognises_none(teacher):
  make_task = functools.partial(make_student, teacher, hard=1.0)
  run = trainer(make_task, distillation.train_data())
  run.train(300)
  unseen = report_on(run.task, distillation.unseen_data())
  assert unseen.scalars['accuracy'] == 0.0


@pytest.mark.slow
def test_teacher_is_saved_with_the_student_and_copied_to_each_device():
  strategy = tftrain.make_strategy('mirrored')
  make_task = functools.partial(distillation.make_task, teacher_steps=2)
  run = trainer(make_task, distillation.train_data(), strategy)
  before = cases.state_of(run)
  run.train(3)
  after = cases.state_of(run)
  names = [name for name in before if name.startswith('teacher/')]
  assert len(names) >= 6
  for name in names:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)
  moved = [name for name in before if (before[name] != after[name]).any()]
  assert [name for name in moved if name.startswith('model/')]
  shown = report_on(run.task, digits.test_data(), strategy).artifacts
  assert shown['differences'].shape == (8, 8, 18, 1)


# Focal.


def rare_accuracy(**options):
  make_task = functools.partial(focal.make_task, **options)
  run = trainer(make_task, focal.train_data())
  run.train(500)
  return report_on(run.task, focal.rare_data()).scalars['accuracy']


@pytest.mark.slow
def test_focal_finds_more_of_the_rare():
  assert rare_accuracy() > 0.72 > 0.65 > rare_accuracy(gamma=0.0, balance=0.0)


def test_focal_loss_is_what_the_paper_says():
  images, labels = digits.load('test')
  task = focal.make_task(gamma=2.0)
  loss = task.loss((images, labels), training=True)
  p = task.serve(images).numpy()[np.arange(len(labels)), labels]
  np.testing.assert_allclose(loss.values, -((1 - p) ** 2) * np.log(p), 1e-4)
  counts = np.bincount(focal.load(0.1)[1])
  np.testing.assert_allclose(
    loss.weights * counts[labels], counts.mean(), rtol=1e-5
  )


def test_focal_serves_probabilities_and_shows_what_is_confused():
  strategy = tftrain.make_strategy('mirrored')
  run = trainer(focal.make_task, focal.train_data(), strategy)
  run.train(3)
  images, _ = digits.load('test')
  sums = run.task.serve(images).numpy().sum(-1)
  np.testing.assert_allclose(sums, 1.0, rtol=1e-5)
  shown = report_on(run.task, digits.test_data(359), strategy).artifacts
  rows = shown['confusion'].numpy().sum(2)[0, :, 0]
  np.testing.assert_allclose(rows, 1.0, rtol=1e-5)
  assert shown['recall'].count('\n') == 11


# A loop of one's own.


@pytest.fixture
def own_loop(monkeypatch):
  """Runs examples/own_loop.py with flags; its module keeps no state."""
  values = flags.FlagValues()  # of its own: the launcher has a --model_dir too
  for kind in ('DEFINE_string', 'DEFINE_integer'):
    define = functools.partial(getattr(flags, kind), flag_values=values)
    monkeypatch.setattr(flags, kind, define)
  program = runpy.run_path(_OWN_LOOP)

  def run(*arguments):
    values.unparse_flags()
    return program['main'](values(['own_loop.py', *arguments]))

  return run


def newest(model_dir):
  directory = model_dir / 'checkpoints'
  step = format.committed_steps(directory)[-1]
  path = format.checkpoint_path(directory, step)
  return format.read_checkpoint(path)[1]


@pytest.mark.slow
def test_own_loop_goes_on_from_its_checkpoint(own_loop, tmp_path, capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  assert own_loop(f'--model_dir={whole}', '--steps=200') == 0
  assert own_loop(f'--model_dir={parts}', '--steps=100') == 0
  capsys.readouterr()
  assert own_loop(f'--model_dir={parts}', '--steps=200') == 0
  said = capsys.readouterr().out
  assert said.startswith('Resumed from step 100\nstep   200  loss 0.')
  cases.assert_same_bits(newest(whole), newest(parts))


@pytest.mark.slow
def test_own_loop_shows_what_it_gets_wrong(own_loop, tmp_path):
  own_loop(f'--model_dir={tmp_path}', '--steps=50', '--strategy=mirrored')
  tags = set()
  for path in tmp_path.glob('eval/test/events*'):
    for record in tf.data.TFRecordDataset(str(path)):
      event = tf.compat.v1.Event.FromString(record.numpy())
      tags |= {value.tag for value in event.summary.value}
  assert {'loss', 'accuracy', 'wrong', 'wrong_answers'} <= tags


@pytest.mark.slow
def test_own_loop_is_a_program(tmp_path):
  command = [sys.executable, _OWN_LOOP, f'--model_dir={tmp_path}']
  result = subprocess.run(
    [*command, '--steps=1000'],
    cwd=tmp_path,
    env={'PYTHONPATH': str(_ROOT), 'CUDA_VISIBLE_DEVICES': ''},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert 'step  1000  loss 0.' in result.stdout

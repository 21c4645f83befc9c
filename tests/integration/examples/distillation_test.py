"""examples/distillation: a student learns from a teacher."""

import functools

import keras
import numpy as np
import pytest

from examples import digits
from examples import distillation
from tests.support import example_runs
from tests.support import small_tasks
import tftrain


@pytest.fixture(scope='module')
def teacher():
  keras.utils.set_random_seed(0)
  return distillation.make_teacher(300)


def make_student(teacher, hard):
  layers = [keras.layers.Dense(32, 'relu'), keras.layers.Dense(10)]
  student = keras.Sequential([keras.Input((64,)), *layers])
  return distillation.Distillation(
    teacher, student, example_runs.adam(3e-3)(), hard=hard
  )


@pytest.mark.slow
def test_student_recognises_what_it_never_saw(teacher):
  before = [variable.numpy() for variable in teacher.variables]
  make_task = functools.partial(make_student, teacher, hard=0.1)
  run = example_runs.trainer_of(make_task, distillation.train_data())
  run.train(1000)
  test = example_runs.report_on(run.task, digits.test_data())
  unseen = example_runs.report_on(run.task, distillation.unseen_data())
  assert test.scalars['teacher_accuracy'] > 0.96
  assert test.scalars['accuracy'] > 0.9
  assert unseen.scalars['accuracy'] > 0.6
  assert unseen.artifacts['differences'].shape == (8, 8, 18, 1)
  for value, variable in zip(before, teacher.variables, strict=True):
    np.testing.assert_array_equal(value, variable.numpy())


@pytest.mark.slow
def test_student_of_labels_alone_recognises_none(teacher):
  make_task = functools.partial(make_student, teacher, hard=1.0)
  run = example_runs.trainer_of(make_task, distillation.train_data())
  run.train(300)
  unseen = example_runs.report_on(run.task, distillation.unseen_data())
  assert unseen.scalars['accuracy'] == 0.0


@pytest.mark.slow
def test_teacher_is_saved_with_the_student_and_copied_to_each_device():
  strategy = tftrain.make_strategy('mirrored')
  make_task = functools.partial(distillation.make_task, teacher_steps=2)
  run = example_runs.trainer_of(make_task, distillation.train_data(), strategy)
  before = small_tasks.state_of(run)
  run.train(3)
  after = small_tasks.state_of(run)
  names = [name for name in before if name.startswith('teacher/')]
  assert len(names) >= 6
  for name in names:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)
  moved = [name for name in before if (before[name] != after[name]).any()]
  assert [name for name in moved if name.startswith('model/')]
  shown = example_runs.report_on(
    run.task, digits.test_data(), strategy
  ).artifacts
  assert shown['differences'].shape == (8, 8, 18, 1)

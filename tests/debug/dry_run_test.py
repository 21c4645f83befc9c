"""The dry run: every part of a run is tried, and nothing is left of it."""

import pathlib

import gin
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.debug import dry_run

_RECIPE = """
import tests.debug.dry_run_test
Experiment.task = @dry_run_test.make_task
Experiment.train_data = @dry_run_test.train_data
Experiment.eval_data = @dry_run_test.eval_data
Experiment.steps = 1000
"""


@gin.register(module='dry_run_test')
def make_task():
  return small_tasks.supervised()


@gin.register(module='dry_run_test')
def train_data():
  return tftrain.Arrays(small_tasks.arrays(), 8)


@gin.register(module='dry_run_test')
def eval_data():
  return tftrain.Arrays(small_tasks.arrays(20), 8, training=False)


@gin.register(module='dry_run_test')
def no_data():
  return tftrain.data.Examples(tftrain.data.TFRecords('/nowhere/*'), 8)


def checked(commands, tmp_path, more=''):
  (tmp_path / 'a.gin').write_text(_RECIPE)
  ended = commands.run(
    f'--gin_file={tmp_path / "a.gin"}',
    f'--model_dir={tmp_path / "run"}',
    '--mode=check',
    f'--gin_bindings={more}',
  )
  assert [path.name for path in tmp_path.iterdir()] == ['a.gin']
  return ended


@pytest.mark.slow
def test_all_is_checked_and_nothing_is_left(commands, tmp_path):
  ended = checked(commands, tmp_path)
  assert ended.code == 0, ended
  lines = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines())
  assert lines['data'] == 'a batch is float32[8, 6], int64[8]'
  assert lines['model'] == '83 trainable parameters'
  assert 'eval/test/accuracy' in lines['metrics']
  assert lines['step'].startswith('loss ')
  assert lines['evaluation'].startswith('test: loss ')
  assert lines['checkpoint'].endswith('equal to the bit')
  assert lines['speed'].endswith(' for 1,000')
  assert lines['export'].endswith('another process computes the same')
  assert lines['memory'].endswith(' MB at most')


@pytest.mark.parametrize(
  'more, text',
  [
    ('Experiment.train_data = @dry_run_test.no_data', '/nowhere/*'),
    (
      "Experiment.early_stop = @EarlyStopping()\nEarlyStopping.metric = 'acc'",
      'early_stop waits for acc, which is never reported',
    ),
    ('make_schedule.x = 1', 'make_schedule'),
  ],
)
def test_the_first_that_fails_is_said(more, text, commands, tmp_path):
  ended = checked(commands, tmp_path, more)
  assert ended.code in (1, 2)
  said = ended.stdout.splitlines()[-1] if ended.code == 1 else ended.error
  assert text in said


class Forgetful(tftrain.SupervisedTask):
  """Says something else each time it is asked what it is."""

  asked = 0

  def read_state(self):
    Forgetful.asked += 1
    return {**super().read_state(), 'asked': tf.constant(self.asked)}

  def write_state(self, state):
    super().write_state({k: v for k, v in state.items() if k != 'asked'})


def test_a_state_that_does_not_come_back_is_named(tmp_path):
  def make():
    plain = small_tasks.supervised()
    return Forgetful(plain.model, plain._loss, plain.optimizer)

  recipe = tftrain.Experiment(make, train_data, steps=10, export=False)
  with pytest.raises(errors.CheckpointError, match='asked is not what it was'):
    list(dry_run.check(recipe))


def test_a_run_of_one_step_has_no_speed():
  recipe = tftrain.Experiment(make_task, train_data, steps=1, export=False)
  assert 'speed       the run has one step' in list(dry_run.check(recipe))
  assert not pathlib.Path('run').exists()

"""Replay: a step is repeated to the bit, and its fault is named."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.support import nan_task
import tftrain
from tftrain import errors
from tftrain.checkpoint import format
from tftrain.debug import replay
from tftrain.experiment import crash_dump


def experiment(bad=-1.0, **options):
  return tftrain.Experiment(
    nan_task.make_task,
    lambda: tftrain.Arrays(nan_task.arrays(bad), 8),
    **{
      'steps': 60,
      'log_every': 10,
      'checkpoint_every': 10,
      'export': False,
      'strategy': 'one_device',
      **options,
    },
  )


def failed(model_dir, recipe):
  with pytest.raises(errors.NonFiniteError) as raised:
    recipe.train(model_dir)
  return raised.value.step


STRATEGIES = pytest.mark.parametrize(
  'strategy', ['one_device', pytest.param('mirrored', marks=pytest.mark.slow)]
)


@STRATEGIES
def test_a_step_that_failed_is_kept_and_repeated(strategy, tmp_path):
  recipe = experiment(strategy=strategy)
  step = failed(tmp_path, recipe)
  said = replay.replay(recipe.prepare(tmp_path), step)
  assert said.startswith(
    f'step {step}, from crash/step-{step}: loss nan, gradient norm '
  )
  assert 'first bad operation: Log made NaN (' in said
  assert f'nan_task.py, line {nan_task.LINE}, in loss)' in said
  assert 'gradients that are not finite: sequential' in said


@pytest.mark.slow
@STRATEGIES
def test_any_step_is_repeated_to_the_bit(strategy, tmp_path):
  recipe = experiment(0.5, strategy=strategy, keep=9)
  recipe.train(tmp_path)
  for step in (10, 30, 31):
    said = replay.replay(recipe.prepare(tmp_path), step)
    near = (step - 1) // 10 * 10
    start = f'the checkpoint of step {near}' if near else 'the beginning'
    assert said.startswith(f'step {step}, from {start}: loss ')
    equal = f'equal to the checkpoint of step {step}, to the bit'
    assert (equal in said) == (step % 10 == 0)


@pytest.mark.slow
def test_a_step_of_a_block_is_repeated_to_the_bit(tmp_path):
  recipe = experiment(0.5, update=tftrain.Update(jit='block'))
  recipe.train(tmp_path)
  said = replay.replay(recipe.prepare(tmp_path), 60)
  assert 'equal to the checkpoint of step 60, to the bit' in said


def test_the_state_before_a_failed_step_is_that_of_a_run_which_ended_there(
  tmp_path,
):
  """Seeds and batch statistics are not those that the step left."""
  step = failed(tmp_path / 'a', experiment())
  experiment(steps=step - 1).train(tmp_path / 'b')
  _, crashed = format.read_checkpoint(crash_dump.path_of(tmp_path / 'a', step))
  path = format.checkpoint_path(tmp_path / 'b' / 'checkpoints', step - 1)
  _, ended = format.read_checkpoint(path)
  names = [name for name in ended if not name.startswith('trainer/')]
  assert len(names) > 10 and 'trainer/step' in crashed
  for name in names:
    np.testing.assert_array_equal(crashed[name], ended[name], err_msg=name)


@pytest.mark.slow
def test_a_bad_batch_and_bad_weights_are_named(tmp_path):
  recipe = experiment(np.nan)
  step = failed(tmp_path, recipe)
  said = replay.replay(recipe.prepare(tmp_path), step)
  assert 'batch leaf 0: 1 of 48 are NaN, first at [' in said


@pytest.mark.parametrize('kind', ['filtered', 'records'])
@pytest.mark.slow
def test_batches_of_other_pipelines_are_found_again(kind, tmp_path):
  x, y = nan_task.arrays(-1.0)
  rows = [{'x': a, 'y': b} for a, b in zip(x, y, strict=True)]
  tftrain.data.write_records(tmp_path / 'data', rows)

  def data():
    return tftrain.data.Examples(
      tftrain.data.TFRecords(tmp_path / 'data*'),
      8,
      select=('x', 'y'),
      shuffle=50,
      filter=(lambda e: e['y'] < 2) if kind == 'filtered' else None,
    )

  recipe = dataclasses.replace(experiment(), train_data=data)
  step = failed(tmp_path / 'run', recipe)
  path = crash_dump.path_of(tmp_path / 'run', step)
  _, values = format.read_checkpoint(path)
  assert (values['batch/0'] == -1.0).sum() == 1
  said = replay.replay(recipe.prepare(tmp_path / 'run'), step)
  assert 'first bad operation: Log made NaN' in said


@pytest.mark.slow
def test_a_dataset_of_ones_own_is_replayed_from_a_checkpoint(tmp_path):
  def data():
    dataset = tf.data.Dataset.from_tensor_slices(nan_task.arrays(-1.0))
    return tftrain.data.DatasetPipeline(
      lambda: dataset.repeat().batch(8, drop_remainder=True), resume='state'
    )

  recipe = dataclasses.replace(experiment(), train_data=data)
  recipe = dataclasses.replace(recipe, checkpoint_every=2)
  step = failed(tmp_path, recipe)
  assert step == 6
  said = replay.replay(recipe.prepare(tmp_path), step)
  assert said.startswith('step 6, from the checkpoint of step 4: loss nan')


@pytest.mark.slow
def test_under_xla_the_cause_is_found_too(tmp_path):
  recipe = experiment(update=tftrain.Update(jit='step'))
  step = failed(tmp_path, recipe)
  said = replay.replay(recipe.prepare(tmp_path), step)
  assert 'first bad operation: Log made NaN' in said


def test_steps_that_are_none_are_refused(tmp_path):
  recipe = experiment(0.5, steps=10)
  with pytest.raises(errors.ConfigError, match='--step=11: the steps of this'):
    replay.replay(recipe.prepare(tmp_path), 11)


def test_a_damaged_crash_is_said(tmp_path):
  recipe = experiment()
  step = failed(tmp_path, recipe)
  path = crash_dump.path_of(tmp_path, step)
  (path / 'manifest.json').write_text('{')
  with pytest.raises(errors.DamagedError, match='is damaged'):
    replay.replay(recipe.prepare(tmp_path), step)


@pytest.mark.slow
def test_a_crash_that_cannot_be_written_leaves_the_first_error(
  tmp_path, caplog
):
  (tmp_path / 'crash').write_text('in the way')
  failed(tmp_path, experiment())
  assert 'could not be written' in caplog.text


_CHECKED = """
import tests.support.nan_task
Experiment.task = @nan_task.make_task
Experiment.train_data = @nan_task.data
Experiment.steps = 20
Experiment.checkpoint_every = 5
Experiment.export = False
"""


@pytest.mark.slow
def test_the_command_line_names_the_operation(commands, tmp_path):
  (tmp_path / 'a.gin').write_text(_CHECKED)
  arguments = [
    f'--gin_file={tmp_path / "a.gin"}',
    f'--model_dir={tmp_path / "run"}',
    '--mode=train',
  ]
  ended = commands.run(*arguments, '--debug_numerics')
  assert ended.code == 1
  assert 'Log made NaN' in ended.error
  assert f'line {nan_task.LINE}, in loss' in ended.error
  ended = commands.run(*arguments)
  assert ended.code == 1
  assert '--mode=replay --step=' in ended.stderr
  step = ended.stderr.partition('--mode=replay --step=')[2].split()[0]
  arguments[-1] = '--mode=replay'
  assert '--step is missing' in commands.run(*arguments).error
  ended = commands.run(*arguments, f'--step={step}')
  assert ended.code == 0, ended
  assert 'first bad operation: Log made NaN' in ended.stdout
  assert (tmp_path / 'run' / 'crash' / f'step-{step}' / 'config.gin').exists()

"""Checkpointer: saves, verifies and restores."""

import json
import shutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.checkpoint import format


def trainer(make=small_tasks.supervised, data=None, **options):
  return tftrain.Trainer(
    make(), data or tftrain.Arrays(small_tasks.arrays(), 8), **options
  )


@pytest.fixture
def saved(tmp_path):
  """A run with checkpoints at 10, 20 and 30, and its directory."""
  run = trainer(lambda: small_tasks.supervised(dropout=0.2))
  checkpointer = tftrain.Checkpointer(tmp_path, run)
  run.train(30, [tftrain.Every(10, checkpointer)])
  return run, tmp_path


def restored(tmp_path):
  run = trainer(lambda: small_tasks.supervised(dropout=0.2))
  return run, tftrain.Checkpointer(tmp_path, run).restore()


def test_a_restored_trainer_has_the_same_bits_and_goes_on_alike(saved):
  original, tmp_path = saved
  run, step = restored(tmp_path)
  assert step == run.step == 30
  small_tasks.assert_same_bits(
    small_tasks.state_of(original), small_tasks.state_of(run)
  )
  original.train(50)
  run.train(50)
  small_tasks.assert_same_bits(
    small_tasks.state_of(original), small_tasks.state_of(run)
  )


def _truncate(path):
  data = path / 'state.data-00000-of-00001'
  data.write_bytes(data.read_bytes()[:-40])


def _flip(path):
  data = path / 'state.data-00000-of-00001'
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)


def _swap(path):
  """Whole files of another step: only the digests can tell."""
  for file in path.parent.joinpath('ckpt-00000020').glob('state.*'):
    shutil.copy(file, path)


_DAMAGES = {
  'values of another step': _swap,
  'truncated data': _truncate,
  'flipped bit': _flip,
  'no data': lambda path: (path / 'state.data-00000-of-00001').unlink(),
  'no index': lambda path: (path / 'state.index').unlink(),
  'empty index': lambda path: (path / 'state.index').write_bytes(b''),
  'no manifest': lambda path: (path / 'manifest.json').unlink(),
  'half a manifest': lambda path: (path / 'manifest.json').write_text('{"va'),
  'another manifest': lambda path: (path / 'manifest.json').write_text('{}'),
}


@pytest.mark.parametrize('damage', _DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, saved, caplog):
  _, tmp_path = saved
  _DAMAGES[damage](tmp_path / 'checkpoints' / 'ckpt-00000030')
  _, step = restored(tmp_path)
  assert step == 20
  assert 'ckpt-00000030' in caplog.text


def test_never_a_silent_start_from_zero(saved):
  _, tmp_path = saved
  for path in (tmp_path / 'checkpoints').glob('ckpt-*'):
    _flip(path)
  with pytest.raises(errors.CheckpointError, match='refusing to start'):
    restored(tmp_path)


def test_the_pointer_file_is_written_and_never_trusted(saved):
  original, tmp_path = saved
  directory = tmp_path / 'checkpoints'
  prefix = tf.train.latest_checkpoint(str(directory))
  reader = tf.train.load_checkpoint(prefix)
  name = 'model/sequential/dense/kernel'
  np.testing.assert_array_equal(
    reader.get_tensor(name), small_tasks.state_of(original)[name]
  )
  (directory / 'checkpoint').write_text('garbage')
  assert restored(tmp_path)[1] == 30
  (directory / 'checkpoint').unlink()
  assert restored(tmp_path)[1] == 30


def test_checkpoints_of_another_run_are_refused(saved):
  _, tmp_path = saved
  others = {
    r'missing model/sequential/dense_2/kernel|dense_1/kernel: checkpoint': (
      lambda: trainer(lambda: _deeper())
    ),
    'optimizers: .*Adam.* vs now .*SGD': lambda: trainer(
      lambda: small_tasks.supervised(keras.optimizers.SGD(0.1))
    ),
    'seed: checkpoint 0 vs now 1': lambda: trainer(seed=1),
    'data: .*"batch_size": 8.* vs now .*"batch_size": 4': lambda: trainer(
      data=tftrain.Arrays(small_tasks.arrays(), 4)
    ),
    r'checkpoint float32\[6, 8\] vs model float32\[7, 8\]|data: ': lambda: (
      trainer(
        lambda: small_tasks.supervised(features=7),
        tftrain.Arrays(small_tasks.arrays(features=7), 8),
      )
    ),
  }
  for pattern, make in others.items():
    with pytest.raises(errors.CheckpointError, match=pattern) as info:
      tftrain.Checkpointer(tmp_path, make()).restore()
    assert '\n' not in str(info.value)
    assert 'choose a new model_dir' in str(info.value)


def _deeper():
  layers = [keras.Input((6,)), *(keras.layers.Dense(8) for _ in range(3))]
  return tftrain.SupervisedTask(
    keras.Sequential(layers),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(0.01),
    {'accuracy': keras.metrics.sparse_categorical_accuracy},
  )


def test_a_changed_learning_rate_is_taken_an_assigned_one_restored(tmp_path):
  run = trainer(lambda: small_tasks.supervised(keras.optimizers.Adam(0.01)))
  checkpointer = tftrain.Checkpointer(tmp_path, run)
  run.task.optimizer.learning_rate = 0.5
  run.train(1, [checkpointer])
  same = trainer(lambda: small_tasks.supervised(keras.optimizers.Adam(0.01)))
  tftrain.Checkpointer(tmp_path, same).restore()
  assert float(same.task.optimizer.learning_rate) == 0.5
  changed = trainer(lambda: small_tasks.supervised(keras.optimizers.Adam(0.02)))
  tftrain.Checkpointer(tmp_path, changed).restore()
  assert float(changed.task.optimizer.learning_rate) == np.float32(0.02)


def test_the_saved_values_are_those_of_their_step(tmp_path, monkeypatch):
  """A save that is slow to write must not see later steps."""
  run = trainer()
  written = format.write_checkpoint

  def slow(directory, step, state, facts):
    run_on.wait(30)
    return written(directory, step, state, facts)

  run_on = threading.Event()
  monkeypatch.setattr(format, 'write_checkpoint', slow)
  checkpointer = tftrain.Checkpointer(tmp_path, run)
  run.train(10)
  moments = {k: v.copy() for k, v in small_tasks.state_of(run).items()}
  checkpointer.save()
  run.train(60)
  assert checkpointer.steps() == []
  run_on.set()
  checkpointer.wait()
  _, state = format.read_checkpoint(
    format.checkpoint_path(checkpointer.directory, 10)
  )
  small_tasks.assert_same_bits(moments, state)


def test_the_newest_are_kept_and_the_last_finite_one(tmp_path):
  run = trainer()
  checkpointer = tftrain.Checkpointer(tmp_path, run, keep=2)
  run.train(40, [tftrain.Every(10, checkpointer)])
  assert checkpointer.steps() == [30, 40]
  kernel = run.task.model.layers[0].kernel
  for step in (50, 60, 70):
    run.request_stop()
    run._step = step
    kernel.assign(kernel.value * np.nan)
    checkpointer.save()
    checkpointer.wait()
  assert checkpointer.steps() == [40, 60, 70]
  manifest = checkpointer.directory / 'ckpt-00000070' / 'manifest.json'
  assert json.loads(manifest.read_text())['finite'] is False


def test_a_failed_save_is_raised_and_leaves_no_trace(tmp_path, monkeypatch):
  run = trainer()
  checkpointer = tftrain.Checkpointer(tmp_path, run)
  run.train(5, [checkpointer])

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(format, 'write_checkpoint', full)
  with pytest.raises(errors.CheckpointError, match='No space.*step 5.*again'):
    run.train(9, [checkpointer])
  assert checkpointer.steps() == [5]
  names = {path.name for path in checkpointer.directory.iterdir()}
  assert names == {'ckpt-00000005', 'checkpoint'}


def test_a_damaged_last_checkpoint_is_made_again(saved):
  _, tmp_path = saved
  newest = tmp_path / 'checkpoints' / 'ckpt-00000030'
  _flip(newest)
  run = trainer(lambda: small_tasks.supervised(dropout=0.2))
  checkpointer = tftrain.Checkpointer(tmp_path, run)
  assert checkpointer.restore() == 20
  run.train(30, [tftrain.Every(10, checkpointer)])
  assert restored(tmp_path)[1] == 30
  aside = [p.name for p in newest.parent.glob('*damaged*')]
  assert len(aside) == 1 and aside[0].startswith('ckpt-00000030.damaged')


def test_a_reader_leaves_a_trainers_half_written_save_alone(saved):
  _, tmp_path = saved
  half = tmp_path / 'checkpoints' / '.tmp-ckpt-00000040-abc'
  half.mkdir()
  assert restored(tmp_path)[1] == 30
  assert half.exists()


def test_stale_temporaries_go_and_nothing_else(saved):
  _, tmp_path = saved
  directory = tmp_path / 'checkpoints'
  stale = directory / '.tmp-ckpt-00000040-abc'
  shutil.copytree(directory / 'ckpt-00000030', stale)
  (directory / 'notes.txt').write_text('mine')
  run, step = restored(tmp_path)
  assert step == 30
  run.train(35, [tftrain.Checkpointer(tmp_path, run)])
  assert not stale.exists()
  assert (directory / 'notes.txt').read_text() == 'mine'

"""WarmStart: weights of another run, of TensorFlow's and of Keras' files."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.experiment import warm_start


def task(body='body', top='top', classes=3):
  layers = [
    keras.Input((6,)),
    keras.layers.Dense(8, 'relu', name=body),
    keras.layers.Dense(classes, name=top),
  ]
  return tftrain.SupervisedTask(
    keras.Sequential(layers),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(0.01),
  )


def trainer(seed=7, update=None, **names):
  keras.utils.set_random_seed(seed)
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  return tftrain.Trainer(task(**names), data, update=update)


def weights(of):
  """Of each layer in order, whatever it is called."""
  return [np.array(value) for value in of.task.model.get_weights()]


def same(one, other):
  return len(one) == len(other) and all(
    a.shape == b.shape and (a == b).all()
    for a, b in zip(one, other, strict=True)
  )


@pytest.fixture
def old(tmp_path):
  """A run of 20 steps with checkpoints at 10 and 20."""
  run = trainer(seed=1)
  checkpointer = tftrain.Checkpointer(tmp_path / 'old', run)
  run.train(20, [tftrain.Every(10, checkpointer)])
  return run


def _model_dir(old, tmp_path):
  return tmp_path / 'old'


def _checkpoints(old, tmp_path):
  return tmp_path / 'old' / 'checkpoints'


def _one(old, tmp_path):
  return tmp_path / 'old' / 'checkpoints' / 'ckpt-00000020'


def _tensorflow(old, tmp_path):
  prefix = str(tmp_path / 'theirs' / 'ckpt')
  return tf.train.Checkpoint(model=old.task.model).write(prefix)


def _tensorflow_directory(old, tmp_path):
  checkpoint = tf.train.Checkpoint(model=old.task.model)
  manager = tf.train.CheckpointManager(checkpoint, tmp_path / 'managed', 2)
  manager.save()
  return tmp_path / 'managed'


def _keras(old, tmp_path):
  old.task.model.save_weights(tmp_path / 'old.weights.h5')
  return tmp_path / 'old.weights.h5'


@pytest.mark.parametrize(
  'source',
  [
    _model_dir,
    _checkpoints,
    _one,
    _tensorflow,
    _tensorflow_directory,
    _keras,
  ],
)
def test_weights_come_from(source, old, tmp_path):
  path = str(source(old, tmp_path))
  new = trainer()
  before = small_tasks.state_of(new)
  warm_start.load(new.task, tftrain.experiment.WarmStart(path))
  assert same(weights(new), weights(old))
  after = small_tasks.state_of(new)
  changed = {n for n, v in after.items() if not np.array_equal(before[n], v)}
  assert changed and all(name.startswith('model/') for name in changed)


def test_one_checkpoint_among_several(old, tmp_path):
  early = tmp_path / 'old' / 'checkpoints' / 'ckpt-00000010'
  new, same_run = trainer(), trainer(seed=1)
  same_run.train(10)
  warm_start.load(new.task, tftrain.experiment.WarmStart(str(early)))
  assert same(weights(new), weights(same_run))


@pytest.mark.parametrize('source', [_model_dir, _tensorflow])
def test_a_layer_that_was_renamed(source, old, tmp_path):
  path = str(source(old, tmp_path))
  new = trainer(body='encoder')
  if source is _model_dir:
    mapping = {'/body/': '/encoder/'}
  else:
    # As Keras 3.15 lays a functional model out.
    there = 'model/_functional/_operations'
    mapping = {
      f'^{there}/1/_kernel$': 'model/sequential/encoder/kernel',
      f'^{there}/1/bias$': 'model/sequential/encoder/bias',
      f'^{there}/2/_kernel$': 'model/sequential/top/kernel',
      f'^{there}/2/bias$': 'model/sequential/top/bias',
    }
  warm_start.load(new.task, tftrain.experiment.WarmStart(path, mapping=mapping))
  assert same(weights(new), weights(old))


def test_a_renamed_layer_in_a_keras_file(old, tmp_path):
  path = str(_keras(old, tmp_path))
  new = trainer(body='encoder')
  mapping = {}
  for layer, name in (('dense', 'encoder'), ('dense_1', 'top')):
    for index, part in enumerate(('kernel', 'bias')):
      mapping[f'^layers/{layer}/vars/{index}$'] = (
        f'model/sequential/{name}/{part}'
      )
  with h5py.File(path) as file:
    named = 'layers/body' in file  # Keras 3 keeps the names of layers
  if named:
    mapping = {
      k.replace('/dense_1/', '/top/').replace('/dense/', '/body/'): v
      for k, v in mapping.items()
    }
  warm_start.load(new.task, tftrain.experiment.WarmStart(path, mapping=mapping))
  assert same(weights(new), weights(old))


def refused(new, start, pattern):
  """Says why, in one line, and leaves the weights as they were."""
  before = weights(new)
  with pytest.raises(errors.CheckpointError, match=pattern) as info:
    warm_start.load(new.task, start)
  assert '\n' not in str(info.value)
  assert same(weights(new), before)
  return str(info.value)


def test_a_refusal_names_both_sides_and_what_was_renamed(old, tmp_path):
  start = tftrain.experiment.WarmStart(str(tmp_path / 'old'))
  text = refused(trainer(body='encoder'), start, 'of another model')
  assert 'missing model/sequential/encoder/' in text
  assert 'unexpected model/sequential/body/' in text
  assert "was 'body' renamed to 'encoder'?" in text
  assert '2 of 4 weights would fit' in text
  assert 'mapping' in text


@pytest.mark.parametrize('strict', [True, False])
def test_a_wrong_shape_is_refused(strict, old, tmp_path):
  start = tftrain.experiment.WarmStart(str(tmp_path / 'old'), strict=strict)
  pattern = r'top/\w+: checkpoint float32\[.*3\] vs model float32\[.*5\]'
  refused(trainer(classes=5), start, pattern)


def test_a_wrong_shape_in_the_files_of_others_is_refused(old, tmp_path):
  for source in (_tensorflow, _keras):
    start = tftrain.experiment.WarmStart(str(source(old, tmp_path)))
    refused(trainer(classes=5), start, 'does not fit the model')


def test_not_strict_takes_what_fits(old, tmp_path):
  new = trainer(top='head')
  before = weights(new)
  path = str(tmp_path / 'old')
  warm_start.load(new.task, tftrain.experiment.WarmStart(path, strict=False))
  assert same(weights(new), [*weights(old)[:2], *before[2:]])
  other = trainer(body='a', top='b')
  start = tftrain.experiment.WarmStart(path, strict=False)
  refused(other, start, '0 of 4 weights')


@pytest.mark.parametrize('source', [_model_dir])
def test_what_is_excluded_keeps_its_values(source, old, tmp_path):
  path = str(source(old, tmp_path))
  new = trainer(classes=5)
  before = weights(new)
  warm_start.load(new.task, tftrain.experiment.WarmStart(path, exclude='/top/'))
  assert same(weights(new), [*weights(old)[:2], *before[2:]])


def test_a_mapping_that_makes_two_one_is_refused(old, tmp_path):
  start = tftrain.experiment.WarmStart(
    str(tmp_path / 'old'), mapping={'/top/bias': '/body/bias'}
  )
  refused(trainer(), start, 'two values of .* the name')


def test_what_is_not_there(old, tmp_path):
  new = trainer()
  for name in ('nothing', 'nothing.weights.h5', 'nothing.index'):
    start = tftrain.experiment.WarmStart(str(tmp_path / name))
    refused(new, start, f'init_from: there is no .*{name}')
  (tmp_path / 'empty').mkdir()
  refused(
    new, tftrain.experiment.WarmStart(str(tmp_path / 'empty')), 'no checkpoint'
  )


def test_what_cannot_be_read(old, tmp_path):
  garbage = tmp_path / 'garbage.weights.h5'
  garbage.write_bytes(b'no such file')
  refused(
    trainer(), tftrain.experiment.WarmStart(str(garbage)), 'garbage.weights.h5'
  )
  newest = _one(old, tmp_path)
  (newest / 'state.index').write_bytes(b'')
  start = tftrain.experiment.WarmStart(str(tmp_path / 'old'))
  refused(trainer(), start, 'cannot be read')


def test_a_whole_keras_model_is_refused_with_advice(old, tmp_path):
  path = tmp_path / 'old.keras'
  old.task.model.save(path)
  refused(
    trainer(), tftrain.experiment.WarmStart(str(path)), r'save_weights\(\)'
  )


def test_a_pattern_that_is_none_is_refused():
  for options in ({'exclude': '('}, {'mapping': {'(': ''}}):
    with pytest.raises(errors.ConfigError, match='no regular expression'):
      tftrain.experiment.WarmStart('anywhere', **options)


def averaged(run):
  with run.task.averaged():
    return weights(run)


def test_moving_averages_are_taken_where_asked_for(tmp_path):
  update = tftrain.Update(ema=0.9)
  run = trainer(seed=1, update=update)
  run.train(20, [tftrain.Checkpointer(tmp_path, run)])
  assert not same(averaged(run), weights(run))
  for averages, expected in ((True, averaged(run)), (False, weights(run))):
    new = trainer()
    start = tftrain.experiment.WarmStart(str(tmp_path), averages=averages)
    warm_start.load(new.task, start)
    assert same(weights(new), expected)


def test_the_averages_of_the_new_run_begin_at_the_loaded_weights(old, tmp_path):
  new = trainer(update=tftrain.Update(ema=0.9))
  warm_start.load(new.task, tftrain.experiment.WarmStart(str(tmp_path / 'old')))
  assert same(averaged(new), weights(old))


def experiment(steps, **options):
  return tftrain.Experiment(
    task,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    steps=steps,
    checkpoint_every=5,
    export=False,
    **options,
  )


@pytest.mark.slow
def test_only_a_run_at_step_0_is_given_weights(old, tmp_path, monkeypatch):
  loaded = []
  load = warm_start.load

  def noting(task, start):
    load(task, start)
    loaded.append(weights(run.trainer))

  monkeypatch.setattr(warm_start, 'load', noting)
  path = str(tmp_path / 'old')
  run = experiment(5, init_from=path).prepare(tmp_path / 'new')
  run.train()
  assert len(loaded) == 1 and same(loaded[0], weights(old))
  run = experiment(10, init_from=path).prepare(tmp_path / 'new')
  run.train()
  assert len(loaded) == 1
  whole = experiment(10, init_from=tftrain.experiment.WarmStart(path))
  run_whole = whole.prepare(tmp_path / 'whole')
  run_whole.train()
  assert same(weights(run.trainer), weights(run_whole.trainer))


def test_a_refused_warm_start_leaves_no_run(tmp_path):
  run = experiment(5, init_from=str(tmp_path / 'no')).prepare(tmp_path / 'new')
  with pytest.raises(errors.CheckpointError, match='init_from'):
    run.train()
  assert run.trainer.step == 0 and run.checkpointer.steps() == []


def test_init_from_must_be_a_path_or_a_warm_start():
  with pytest.raises(errors.ConfigError, match='init_from is a int'):
    experiment(5, init_from=3)

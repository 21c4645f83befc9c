"""SavedModels: inputs, outputs, averaged weights, comparison and retries."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import exported_models
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.export import saved_model


def test_an_export_that_differs_is_refused_and_leaves_nothing(tmp_path):
  class Changing(tftrain.SupervisedTask):
    def serve(self, features):
      return tf.cast(self.model(features), tf.float64) + tf.timestamp()

  task = Changing(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(),
  )
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  trainer = tftrain.Trainer(task, data)
  with pytest.raises(errors.ExportError, match='differs from the live one'):
    tftrain.export.export_model(
      task, trainer.example_features(), tmp_path / 'out' / '1'
    )
  assert list((tmp_path / 'out').iterdir()) == []
  (tmp_path / 'out' / '2').mkdir()
  with pytest.raises(errors.ExportError, match='exists'):
    tftrain.export.export_model(task, None, tmp_path / 'out' / '2')


def test_dictionaries_of_features_become_named_inputs(tmp_path):
  class Two(tftrain.Task):
    def loss(self, batch, training):
      return tftrain.Loss(self.serve(batch)['score'] ** 2)

    def serve(self, features):
      inputs = tf.concat([features['a'], features['b']], 1)
      return {'score': self.model(inputs)[:, 0]}

  x, _ = small_tasks.arrays()
  data = tftrain.Arrays({'a': x[:, :2], 'b': x[:, 2:]}, 8)
  trainer = tftrain.Trainer(
    Two(small_tasks.model(), keras.optimizers.SGD()), data
  )
  path = tftrain.export.export_model(
    trainer.task, trainer.example_features(), tmp_path / '1'
  )
  signature = tf.saved_model.load(str(path)).signatures['serving_default']
  assert signature(a=x[:3, :2], b=x[:3, 2:])['score'].shape == (3,)


def test_several_inputs_and_outputs_are_numbered(tmp_path):
  class Two(tftrain.Task):
    def loss(self, batch, training):
      return tftrain.Loss(self.serve(batch[0])[0] ** 2)

    def serve(self, features):
      logits = self.model(tf.concat(features, 1))
      return logits[:, 0], logits[:, 1]

  x, y = small_tasks.arrays()
  run = tftrain.Experiment(
    lambda: Two(small_tasks.model(), keras.optimizers.SGD()),
    lambda: tftrain.Arrays(((x[:, :2], x[:, 2:]), y), 8),
    steps=2,
    export=tftrain.actions.Export(fresh=False),
  ).prepare(tmp_path)
  run.train()
  served = tf.saved_model.load(str(tmp_path / 'export' / '2'))
  outputs = served.signatures['serving_default'](
    inputs_0=x[:3, :2], inputs_1=x[:3, 2:]
  )
  assert sorted(outputs) == ['outputs_0', 'outputs_1']


def test_what_cannot_be_exported_is_said_before_the_first_step(tmp_path):
  class Wrong(tftrain.SupervisedTask):
    def serve(self, features):
      return self.model(features)[:, 7:8] + features['missing']

  make = lambda: Wrong(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(),
  )
  data = lambda: tftrain.Arrays(small_tasks.arrays(), 8)
  with pytest.raises(errors.ExportError, match="default' of Wrong") as info:
    tftrain.Experiment(make, data, steps=2).train(tmp_path / 'run')
  assert '\n' not in str(info.value)
  assert not (tmp_path / 'run').exists()
  tftrain.Experiment(make, data, steps=2, export=False).train(tmp_path / 'run')


def test_an_export_that_failed_is_made_by_the_next_start(tmp_path):
  def train():
    keras.utils.set_random_seed(0)
    return tftrain.Experiment(
      small_tasks.supervised,
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
      steps=4,
      export=tftrain.actions.Export(fresh=False),
    ).train(tmp_path)

  (tmp_path / 'export').write_text('in the way')
  with pytest.raises(errors.Error):
    train()
  assert (tmp_path / 'checkpoints' / 'ckpt-00000004').exists()
  (tmp_path / 'export').unlink()
  assert not train().already_done
  assert (tmp_path / 'export' / '4' / 'saved_model.pb').exists()
  assert train().already_done


def averaged_run(strategy):
  keras.utils.set_random_seed(0)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = small_tasks.supervised(keras.optimizers.Adam(0.05))
  trainer = tftrain.Trainer(
    task,
    tftrain.Arrays(small_tasks.arrays(), 8),
    strategy=strategy,
    update=tftrain.Update(ema=0.95),
  )
  trainer.train(30)
  return trainer


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_averaged_weights_are_what_is_exported(strategy, tmp_path):
  trainer = averaged_run(strategy)
  before = small_tasks.state_of(trainer)
  x = trainer.example_features()
  tftrain.export.export_model(trainer.task, x, tmp_path / 'model')
  small_tasks.assert_same_bits(before, small_tasks.state_of(trainer))
  exported = tf.saved_model.load(str(tmp_path / 'model')).signatures
  outputs = exported['serving_default'](inputs=x)['outputs'].numpy()
  with trainer.task.averaged():
    np.testing.assert_array_equal(outputs, trainer.task.model(x))
  assert np.abs(outputs - trainer.task.model(x)).max() > 1e-3


def test_a_part_is_exported_alone(tmp_path):
  trainer = averaged_run('one_device')
  trunk = trainer.task.model.layers[0]
  x = trainer.example_features()
  tftrain.export.export_model(trainer.task, x, tmp_path / 'trunk', part=trunk)
  exported = tf.saved_model.load(str(tmp_path / 'trunk'))
  outputs = exported.signatures['serving_default'](inputs=x)['outputs']
  with trainer.task.averaged():
    np.testing.assert_array_equal(outputs, trunk(x))
  names = [name for name, _ in tf.train.list_variables(
    str(tmp_path / 'trunk' / 'variables' / 'variables')
  )]  # fmt: skip
  assert sum('all_variables' in name for name in names) == 2


def test_what_was_compared_is_written_beside_it(tmp_path):
  exported_models.exported(
    exported_models.offering(),
    tmp_path,
    formats=('tflite',),
    about={'Run': {'step': 7}},
  )
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  assert seen['fresh process'] is False
  assert seen['signatures']['serving_default']['outputs'] == {
    'difference': 0.0,
    'tolerance': 0.0,
    'shape': [8, 3],
    'dtype': 'float32',
  }
  assert seen['formats']['tflite']['outputs']['difference'] <= 1e-5
  card = (tmp_path / '1' / saved_model.CARD).read_text()
  for text in (
    '| `serving_default` | `inputs` float32[batch, 6] | `outputs` float32',
    '| `probabilities` | `image` float32[batch, 6] |',
    'Parameters: 83',
    '| step | `7` |',
    f"tf.saved_model.load('{tmp_path / '1'}')",
    'TF_LoadSessionFromSavedModel',
  ):
    assert text in card, text

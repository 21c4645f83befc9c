"""Exports in another process: the same outputs, to the bit."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import digit_records
from examples import heads
from examples import rnn
from tests.support import exported_models
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.export import saved_model


@pytest.mark.slow
def test_another_process_gives_the_same_bits(tmp_path):
  """bfloat16, texts and several outputs among them."""

  class Mixed(exported_models.Offering):
    def texts(self, word):
      return tf.strings.join([word, '!']), tf.cast(
        tf.strings.length(word), tf.bfloat16
      )

    def signatures(self, features):
      words = np.array([b'one', b'two\0', 'drei é'.encode()], object)
      return {'texts': tftrain.export.Signature(self.texts, {'word': words})}

  _, loaded = exported_models.exported(
    exported_models.offering(Mixed), tmp_path, fresh=True
  )
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  assert seen['fresh process'] is True
  assert seen['signatures']['texts']['outputs_0']['difference'] == 0.0
  outputs = exported_models.served(loaded, 'texts', word=['x'])
  assert outputs['outputs_0'].numpy().tolist() == [b'x!']


@pytest.mark.slow
def test_a_model_that_another_process_cannot_run_is_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(sys, 'executable', '/bin/false')
  with pytest.raises(errors.ExportError, match='exporting to .* failed: exit'):
    exported_models.exported(exported_models.offering(), tmp_path, fresh=True)
  assert list(tmp_path.iterdir()) == []


class Plain(tf.Module):
  """A model without Keras."""

  def __init__(self):
    super().__init__()
    self.kernel = tf.Variable(tf.random.stateless_normal([6, 3], [1, 2]))
    self.steps = tf.Variable(2, trainable=False)

  def __call__(self, x, training=False):
    for _ in tf.range(self.steps):
      x = x / 2.0
    return x @ self.kernel


class PlainTask(tftrain.Task):
  def loss(self, batch, training):
    return tftrain.Loss(tf.reduce_mean(self.model(batch[0]) ** 2, 1))


_MODELS = {
  'a plain module': lambda tmp_path: (
    PlainTask(Plain(), keras.optimizers.SGD(0.1)),
    tftrain.Arrays(small_tasks.arrays(), 8),
  ),
  'a loop of its own': lambda tmp_path: (
    rnn.make_task(lambda: keras.optimizers.Adam(0.01), units=8),
    rnn.train_data(8, 20),
  ),
  'records of digits': lambda tmp_path: (
    digit_records.make_task(lambda: keras.optimizers.Adam(0.01)),
    digit_records.data(training=False, directory=str(tmp_path / 'data')),
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', _MODELS)
def test_models_of_all_kinds_are_the_same_in_another_process(name, tmp_path):
  task, data = _MODELS[name](tmp_path)
  trainer = exported_models.trainer_of(task, data)
  tftrain.export.export_model(
    task,
    trainer.example_features(),
    tmp_path / '1',
    decoder=trainer.pipeline.decoder(),
    fresh=True,
  )
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  assert seen['fresh process'] is True
  names = ['serving_default']
  if name == 'records of digits':
    names.insert(0, 'examples')
  assert sorted(seen['signatures']) == names


@pytest.mark.slow
def test_a_shared_trunk_is_the_same_in_another_process(tmp_path):
  task = heads.make_task()
  trainer = tftrain.Trainer(task, heads.train_data({'digit': 8, 'loop': 8}))
  tftrain.export.export_model(
    task,
    trainer.example_features(),
    tmp_path / '1',
    part=task.trunk,
    fresh=True,
  )
  loaded = tf.saved_model.load(str(tmp_path / '1'))
  assert exported_models.served(loaded, inputs=np.zeros([1, 64], 'float32'))


_LOADER = """
import sys, numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
x = np.load(sys.argv[2])
y = model.signatures['serving_default'](inputs=x)['outputs']
np.save(sys.argv[3], tf.cast(y, tf.float32))  # NumPy saves no bfloat16
assert not any(name.startswith('tftrain') for name in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_a_trained_model_is_the_same_where_tftrain_is_not(strategy, tmp_path):
  """Mixed precision, moving averages, one replica and two."""
  run = exported_models.experiment(
    strategy=strategy,
    precision='mixed_bfloat16',
    update=tftrain.Update(ema=0.9),
  ).prepare(tmp_path / 'run')
  run.train()
  x, _ = small_tasks.arrays(5)
  np.save(tmp_path / 'x.npy', x)
  (tmp_path / 'load.py').write_text(_LOADER)
  path = tmp_path / 'run' / 'export' / '40'
  subprocess.run(
    [sys.executable, '-I', tmp_path / 'load.py', path, 'x.npy', 'y.npy'],
    cwd=tmp_path,
    check=True,
    timeout=120,
  )
  with run.trainer.task.averaged():
    # Compiled, too: a CPU may round fused operations on bfloat16 only once.
    live = tf.function(run.trainer.task.serve)(tf.constant(x))
  live = tf.cast(live, tf.float32)
  np.testing.assert_array_equal(np.load(tmp_path / 'y.npy'), live)

"""What leaves: the same in another process, in other formats, from records."""

import dataclasses
import importlib
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
from tests import cases
import tftrain
from tftrain import errors
from tftrain.export import converters
from tftrain.export import saved_model
from tftrain.export import signature


def trainer_of(task, data=None):
  return tftrain.Trainer(task, data or tftrain.Arrays(cases.arrays(), 8))


def exported(task, directory, data=None, **options):
  """Trains nothing, exports; the live Task and the loaded SavedModel."""
  trainer = trainer_of(task, data)
  features = trainer.example_features()
  path = tftrain.export.export_model(task, features, directory / '1', **options)
  return features, tf.saved_model.load(str(path))


def served(loaded, name=signature.SERVE, **given):
  return loaded.signatures[name](
    **{k: tf.convert_to_tensor(v) for k, v in given.items()}
  )


class Offering(tftrain.SupervisedTask):
  """Offers its probabilities besides the logits."""

  def probabilities(self, image):
    return {'probability': tf.nn.softmax(self.model(image, training=False))}

  def signatures(self, features):
    one = tftrain.export.Signature(self.probabilities, {'image': features})
    return {'probabilities': one}


def offering(task=Offering):
  return task(
    cases.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(),
  )


def test_a_task_may_offer_several_signatures_of_any_batch_size(tmp_path):
  task = offering()
  _, loaded = exported(task, tmp_path)
  assert sorted(loaded.signatures) == ['probabilities', 'serving_default']
  for rows in (1, 3):
    x, _ = cases.arrays(rows)
    logits = task.model(x)
    outputs = served(loaded, inputs=x)['outputs']
    np.testing.assert_array_equal(outputs, logits)
    found = served(loaded, 'probabilities', image=x)['probability']
    np.testing.assert_allclose(found, tf.nn.softmax(logits), rtol=1e-6)


def test_what_was_compared_is_written_beside_it(tmp_path):
  exported(
    offering(), tmp_path, formats=('tflite',), about={'Run': {'step': 7}}
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


@pytest.mark.slow
def test_another_process_gives_the_same_bits(tmp_path):
  """bfloat16, texts and several outputs among them."""

  class Mixed(Offering):
    def texts(self, word):
      return tf.strings.join([word, '!']), tf.cast(
        tf.strings.length(word), tf.bfloat16
      )

    def signatures(self, features):
      words = np.array([b'one', b'two\0', 'drei é'.encode()], object)
      return {'texts': tftrain.export.Signature(self.texts, {'word': words})}

  _, loaded = exported(offering(Mixed), tmp_path, fresh=True)
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  assert seen['fresh process'] is True
  assert seen['signatures']['texts']['outputs_0']['difference'] == 0.0
  outputs = served(loaded, 'texts', word=['x'])
  assert outputs['outputs_0'].numpy().tolist() == [b'x!']


@pytest.mark.slow
def test_a_model_that_another_process_cannot_run_is_refused(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(sys, 'executable', '/bin/false')
  with pytest.raises(errors.ExportError, match='exporting to .* failed: exit'):
    exported(offering(), tmp_path, fresh=True)
  assert list(tmp_path.iterdir()) == []


# Signatures that are none.


def _wrong(function, example=None, specs=None):
  class Wrong(Offering):
    def signatures(self, features):
      given = example or {'image': features}
      return {'wrong': tftrain.export.Signature(function, given, specs or {})}

  return offering(Wrong)


_SPEC = {'imgae': tf.TensorSpec([None, 6])}


@pytest.mark.parametrize(
  'make,text',
  [
    (
      lambda: _wrong(lambda imgae: imgae),
      "names the input 'image', which its function does not take; it takes "
      'imgae',
    ),
    (
      lambda: _wrong(lambda image: image, specs=_SPEC),
      "has a spec for 'imgae' and no example of it; there are image",
    ),
    (
      lambda: _wrong(
        lambda image: (
          tf.concat([image, np.zeros([8, 6], 'float32')], 1)
          + tf.zeros([image.shape[0], 12])
        )
      ),
      'works with a fixed batch size only',
    ),
    (
      lambda: _wrong(
        lambda image: tf.numpy_function(lambda x: x, [image], tf.float32)
      ),
      'calls Python (PyFunc',
    ),
    (
      lambda: _wrong(lambda image: tf.py_function(abs, [image], tf.float32)),
      'which no SavedModel can hold',
    ),
  ],
)
def test_signatures_that_cannot_be_exported_are_refused(make, text, tmp_path):
  with pytest.raises(errors.ExportError) as info:
    exported(make(), tmp_path)
  assert text in str(info.value)
  assert str(info.value).startswith("signature 'wrong' of Wrong ")
  assert '\n' not in str(info.value)
  assert list(tmp_path.iterdir()) == []


def test_names_of_signatures_stay_in_their_place(tmp_path):
  class Named(Offering):
    def signatures(self, features):
      return {
        '../x': tftrain.export.Signature(
          self.probabilities, {'image': features}
        )
      }

  with pytest.raises(errors.ConfigError, match='cannot name a directory'):
    exported(offering(Named), tmp_path)


# Records.


def _write(directory, rows=20):
  x, y = cases.arrays(rows)
  rows = [
    {'raw': (r * 10).astype('float32'), 'label': n}
    for r, n in zip(x, y, strict=True)
  ]
  tftrain.data.write_records(directory / 'train', rows, shards=2)
  return tftrain.data.TFRecords(directory / 'train-*')


def _scaled(example):
  return {'image': example['raw'] / 10.0, 'label': example['label']}


def _serialized(**features):
  example = tf.train.Example()
  for name, value in features.items():
    if isinstance(value, int):
      example.features.feature[name].int64_list.value.append(value)
    else:
      example.features.feature[name].float_list.value.extend(value)
  return example.SerializeToString()


def assert_records_are_served(data, directory, factor):
  """The model of features times a factor; returns what was loaded."""
  task = offering()
  _, loaded = exported(task, directory, data, decoder=data.decoder())
  x, _ = cases.arrays(3)
  # No label: what does not matter for the outcome need not be there.
  records = [_serialized(raw=row * 10) for row in x]
  outputs = served(loaded, signature.RECORDS, examples=records)['outputs']
  expected = task.model(x * factor)
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
  return loaded


@pytest.mark.slow
@pytest.mark.parametrize('mapped', [_scaled, None])
def test_records_are_served_as_they_were_trained(mapped, tmp_path):
  names = ('image', 'label') if mapped else ('raw', 'label')
  data = tftrain.data.Examples(
    _write(tmp_path / 'data'), 8, map=mapped, select=names, training=False
  )
  loaded = assert_records_are_served(data, tmp_path, 1 if mapped else 10)
  with pytest.raises(tf.errors.InvalidArgumentError, match='raw'):
    served(loaded, signature.RECORDS, examples=[_serialized(label=1)])


@pytest.mark.slow
def test_a_map_by_chance_and_map_batch_are_in_it_too(tmp_path):
  def noisy(example, seed):
    noise = tf.random.stateless_uniform([6], seed)
    return {**_scaled(example), 'noise': noise}

  def finish(batch):
    return batch['image'] * 2.0 + 0.0 * batch['noise'], batch['label']

  data = tftrain.data.Examples(
    _write(tmp_path / 'data'), 8, map=noisy, map_batch=finish, training=False
  )
  assert_records_are_served(data, tmp_path, 2)


# Formats.


@pytest.mark.parametrize(
  'name',
  [
    'tflite',
    pytest.param('tflite_float16', marks=pytest.mark.slow),
    pytest.param('tflite_int8', marks=pytest.mark.slow),
    'keras',
  ],
)
def test_other_formats_compute_the_same(name, tmp_path):
  exported(offering(), tmp_path, formats=(name,))
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  found = seen['formats'][name]['outputs']
  assert found['difference'] <= found['tolerance']


def test_formats_that_are_none_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match="no export format 'tflight'"):
    exported(offering(), tmp_path, formats=('tflight',))

  class Own(Offering):
    def serve(self, features):
      return tf.nn.softmax(self.model(features))

  with pytest.raises(errors.ConfigError, match=r'a serve\(\) of its own'):
    exported(offering(Own), tmp_path, formats=('keras',))
  assert list(tmp_path.iterdir()) == []


def test_a_format_that_differs_is_refused(tmp_path, monkeypatch):
  one = converters.of_name('tflite')
  wrong = lambda path, given: {
    k: v + 1e-3 for k, v in one.run(path, given).items()
  }
  changed = {'tflite': dataclasses.replace(one, run=wrong)}
  monkeypatch.setattr(converters, '_FORMATS', changed)
  with pytest.raises(errors.ExportError, match='model.tflite of the export'):
    exported(offering(), tmp_path, formats=('tflite',))
  assert list(tmp_path.iterdir()) == []


def test_onnx_says_what_it_needs_or_computes_the_same(tmp_path):
  try:
    importlib.import_module('tf2onnx')
  except ImportError:
    with pytest.raises(errors.ConfigError, match=r"pip install 'tftrain\[onnx"):
      exported(offering(), tmp_path, formats=('onnx',))
    return
  exported(offering(), tmp_path, formats=('onnx',))
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  assert seen['formats']['onnx']['outputs']['difference'] <= 1e-5


# Other models.


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
    tftrain.Arrays(cases.arrays(), 8),
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
  trainer = trainer_of(task, data)
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
  assert served(loaded, inputs=np.zeros([1, 64], 'float32'))


# While a run trains.


def experiment(**options):
  options = {'steps': 40, 'eval_every': 10, 'checkpoint_every': 20, **options}
  return tftrain.Experiment(
    offering,
    lambda: tftrain.Arrays(cases.arrays(), 8),
    lambda: tftrain.Arrays(cases.arrays(seed=5), 16, training=False),
    log_every=10,
    **options,
  )


def names_in(directory):
  return sorted(int(path.name) for path in directory.iterdir())


def test_exports_come_every_so_often_and_the_newest_are_kept(tmp_path):
  (tmp_path / 'export' / 'mine').mkdir(parents=True)
  export = tftrain.actions.Export(every=10, keep=2, fresh=False)
  experiment(export=export).train(tmp_path)
  names = {path.name for path in (tmp_path / 'export').iterdir()}
  assert names == {'30', '40', 'mine'}


@pytest.mark.slow
def test_what_was_exported_on_a_way_not_taken_is_set_aside(tmp_path):
  """NaN at step 35: back to 20, and at 30 the weights are others."""
  x, y = cases.arrays(200)
  batches = [(x[i % 25 * 8 :][:8], y[i % 25 * 8 :][:8]) for i in range(60)]
  batches[34] = (batches[34][0] * np.nan, batches[34][1])
  run = tftrain.Experiment(
    offering,
    lambda: batches,
    steps=40,
    log_every=5,
    checkpoint_every=20,
    export=tftrain.actions.Export(every=10, keep=9, fresh=False),
    rewind=tftrain.experiment.Rewind(skip_batches=10),
  ).prepare(tmp_path)
  run.train()
  names = {path.name.partition('-')[0] for path in run_exports(tmp_path)}
  assert names == {'10', '20', '30', '40', '30.abandoned'}
  (first,) = (tmp_path / 'export').glob('30.abandoned-*')
  one, other = (
    tf.saved_model.load(str(first)),
    tf.saved_model.load(str(tmp_path / 'export' / '30')),
  )
  assert (served(one, inputs=x)['outputs'] != served(other, inputs=x)['outputs']
    ).numpy().any()  # fmt: skip


def run_exports(model_dir):
  return list((model_dir / 'export').iterdir())


@pytest.mark.slow
def test_exports_come_with_each_new_best(tmp_path):
  export = tftrain.actions.Export(on_best=True, keep=99, fresh=False)
  best = tftrain.checkpoint.KeepBest('eval/test/loss', 'min')
  experiment(export=export, best=best).train(tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  values = [json.loads(line) for line in lines]
  losses = {v['step']: v['loss'] for v in values if v['source'] == 'eval/test'}
  firsts = [
    s for s in losses if losses[s] == min(losses[t] for t in losses if t <= s)
  ]
  assert names_in(tmp_path / 'export') == sorted({*firsts, 40})
  card = (tmp_path / 'export' / '40' / 'model.md').read_text()
  assert 'eval/test/loss' in card


def test_options_that_make_no_sense_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='on_best needs Experiment.best'):
    experiment(export=tftrain.actions.Export(on_best=True)).prepare(tmp_path)
  with pytest.raises(errors.ConfigError, match="'trunk' is no model of Offer"):
    experiment(export=tftrain.actions.Export(part='trunk')).prepare(tmp_path)
  with pytest.raises(errors.ConfigError, match='Export.keep'):
    tftrain.actions.Export(keep=0)
  with pytest.raises(errors.ConfigError, match='give a list'):
    tftrain.actions.Export(formats='tflite')
  with pytest.raises(errors.ConfigError, match='no export format'):
    experiment(export=tftrain.actions.Export(formats=['x'])).prepare(tmp_path)


def test_a_part_is_exported_by_its_name(tmp_path):
  experiment(export=tftrain.actions.Export(part='model', fresh=False)).train(
    tmp_path
  )
  loaded = tf.saved_model.load(str(tmp_path / 'export' / '40'))
  assert list(loaded.signatures) == ['serving_default']


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
  run = experiment(
    strategy=strategy,
    precision='mixed_bfloat16',
    update=tftrain.Update(ema=0.9),
  ).prepare(tmp_path / 'run')
  run.train()
  x, _ = cases.arrays(5)
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

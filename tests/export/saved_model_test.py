"""What a run leaves behind: curves, lines, texts and an exported model."""

import json
import pathlib

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from tests import cases
import tftrain
from tftrain import errors


@pytest.fixture(scope='module', params=['one_device', 'mirrored'])
def run_dir(request, tmp_path_factory):
  """A finished run."""
  model_dir = tmp_path_factory.mktemp(request.param)
  keras.utils.set_random_seed(0)
  run = tftrain.Experiment(
    cases.supervised,
    lambda: tftrain.Arrays(cases.arrays(), 8),
    {
      'test': lambda: tftrain.Arrays(cases.arrays(seed=1), 8, training=False),
      'ood': lambda: tftrain.Arrays(cases.arrays(seed=2), 8, training=False),
    },
    steps=60,
    log_every=20,
    eval_every='2 epochs',
    export=tftrain.actions.Export(fresh=False),
    strategy=request.param,
  ).prepare(model_dir)
  run.train({'config.gin': 'Experiment.steps = 60\n'})
  return run, model_dir


def events(directory):
  accumulator = event_accumulator.EventAccumulator(
    str(directory), size_guidance={'tensors': 0}
  )
  accumulator.Reload()
  return accumulator


def scalars(directory, tag):
  return {
    event.step: float(tf.make_ndarray(event.tensor_proto))
    for event in events(directory).Tensors(tag)
  }


def test_train_and_eval_curves_share_their_tags(run_dir):
  _, model_dir = run_dir
  train = scalars(model_dir / 'train', 'loss')
  test = scalars(model_dir / 'eval' / 'test', 'loss')
  assert list(train) == [20, 40, 60]
  assert list(test) == list(scalars(model_dir / 'eval' / 'ood', 'loss'))
  assert list(test) == [17, 34, 51, 60]  # two epochs of 67 in batches of 8
  tags = events(model_dir / 'train').Tags()['tensors']
  assert {
    'loss',
    'accuracy',
    'learning_rate',
    'gradient_norm',
    'time/steps_per_second',
    'time/examples_per_second',
    'time/input_wait',
    'config.gin',
  } <= set(tags)


def test_metrics_jsonl_holds_the_same_values(run_dir):
  _, model_dir = run_dir
  train = scalars(model_dir / 'train', 'loss')
  lines = (model_dir / 'metrics.jsonl').read_text().splitlines()
  values = [json.loads(line) for line in lines]
  ours = {v['step']: v['loss'] for v in values if v['source'] == 'train'}
  assert ours == pytest.approx(train)
  assert not any('per_second' in line or 'seconds' in line for line in lines)
  timing = (model_dir / 'timing.jsonl').read_text().splitlines()
  assert len(timing) == len(lines)


def test_the_export_serves_any_batch_size_without_our_code(run_dir):
  run, model_dir = run_dir
  served = tf.saved_model.load(str(model_dir / 'export' / '60'))
  signature = served.signatures['serving_default']
  for rows in (1, 5):
    x, _ = cases.arrays(rows)
    np.testing.assert_array_equal(
      signature(inputs=x)['outputs'], run.trainer.task.model(x)
    )
  names = [path.name for path in (model_dir / 'export').iterdir()]
  assert names == ['60']


def test_an_export_that_differs_is_refused_and_leaves_nothing(tmp_path):
  class Changing(tftrain.SupervisedTask):
    def serve(self, features):
      return tf.cast(self.model(features), tf.float64) + tf.timestamp()

  task = Changing(
    cases.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(),
  )
  data = tftrain.Arrays(cases.arrays(), 8)
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

  x, _ = cases.arrays()
  data = tftrain.Arrays({'a': x[:, :2], 'b': x[:, 2:]}, 8)
  trainer = tftrain.Trainer(Two(cases.model(), keras.optimizers.SGD()), data)
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

  x, y = cases.arrays()
  run = tftrain.Experiment(
    lambda: Two(cases.model(), keras.optimizers.SGD()),
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
    cases.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(),
  )
  data = lambda: tftrain.Arrays(cases.arrays(), 8)
  with pytest.raises(errors.ExportError, match="default' of Wrong") as info:
    tftrain.Experiment(make, data, steps=2).train(tmp_path / 'run')
  assert '\n' not in str(info.value)
  assert not (tmp_path / 'run').exists()
  tftrain.Experiment(make, data, steps=2, export=False).train(tmp_path / 'run')


def test_an_export_that_failed_is_made_by_the_next_start(tmp_path):
  def train():
    keras.utils.set_random_seed(0)
    return tftrain.Experiment(
      cases.supervised,
      lambda: tftrain.Arrays(cases.arrays(), 8),
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


def test_progress_says_step_metrics_and_speed(capsys):
  trainer = tftrain.Trainer(
    cases.supervised(), tftrain.Arrays(cases.arrays(), 8), log_every=10
  )
  trainer.train(20, [tftrain.summary.ProgressBar()])
  lines = capsys.readouterr().err.splitlines()
  lines = [line for line in lines if ' train ' in line]
  assert len(lines) == 2
  assert '20/20' in lines[1] and 'loss' in lines[1] and 'steps/s' in lines[1]


def test_metrics_files_take_non_finite_values_as_strict_json(tmp_path):
  sink = tftrain.summary.MetricsFile(tmp_path)
  scalars = {'a': float('nan'), 'b': 1e300, 'c': float('-inf')}
  sink(cases.report(1, source='eval/test', scalars=scalars))
  line = pathlib.Path(tmp_path, 'metrics.jsonl').read_text()
  assert 'NaN' not in line and 'Infinity' not in line
  assert json.loads(line)['b'] == 1e300


def test_lines_after_the_restored_step_are_taken_back(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  kept = '{"step": 10, "source": "train", "loss": 1.0}\n'
  path.write_text(
    kept + '{"step": 20, "source": "train", "loss": 9.0}\n' + '{"step": 30, "so'
  )
  sink = tftrain.summary.MetricsFile(tmp_path)
  for step, loss in ((20, 2.0), (20, 2.0), (30, 3.0)):
    scalars = {'loss': loss}
    sink(cases.report(step, start_step=10, last_step=30, scalars=scalars))
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert path.read_text().startswith(kept)
  assert [line['loss'] for line in lines] == [1.0, 2.0, 2.0, 3.0]


def averaged_run(strategy):
  keras.utils.set_random_seed(0)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = cases.supervised(keras.optimizers.Adam(0.05))
  trainer = tftrain.Trainer(
    task,
    tftrain.Arrays(cases.arrays(), 8),
    strategy=strategy,
    update=tftrain.Update(ema=0.95),
  )
  trainer.train(30)
  return trainer


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_averaged_weights_are_what_is_exported(strategy, tmp_path):
  trainer = averaged_run(strategy)
  before = cases.state_of(trainer)
  x = trainer.example_features()
  tftrain.export.export_model(trainer.task, x, tmp_path / 'model')
  cases.assert_same_bits(before, cases.state_of(trainer))
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


class Looks(tftrain.SupervisedTask):
  def artifacts(self, batch):
    x, _ = batch
    images = tf.reshape(x[:3], [3, 2, 3, 1])
    return {'pictures': images, 'words': f'**{len(x)}** rows'}


def looking(kind):
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return kind(cases.model(), loss, keras.optimizers.Adam(0.05))


def test_artifacts_are_in_the_events(tmp_path):
  tftrain.Experiment(
    lambda: looking(Looks),
    lambda: tftrain.Arrays(cases.arrays(), 8),
    lambda: tftrain.Arrays(cases.arrays(seed=1), 8, training=False),
    steps=20,
    eval_every=10,
    export=False,
  ).train(tmp_path)
  found = events(tmp_path / 'eval' / 'test')
  texts = [tf.make_ndarray(e.tensor_proto) for e in found.Tensors('words')]
  assert [text.item() for text in texts] == [b'**8** rows'] * 2
  width, height, *pictures = tf.make_ndarray(
    found.Tensors('pictures')[0].tensor_proto
  )
  assert (width, height, len(pictures)) == (b'3', b'2', 3)
  assert tf.io.decode_png(pictures[0]).shape == (2, 3, 1)


class LooksWrong(Looks):
  def artifacts(self, batch):
    return {'flat': batch[0]}


def test_artifacts_of_the_wrong_shape_are_named(tmp_path):
  experiment = tftrain.Experiment(
    lambda: looking(LooksWrong),
    lambda: tftrain.Arrays(cases.arrays(), 8),
    lambda: tftrain.Arrays(cases.arrays(seed=1), 8, training=False),
    steps=2,
    export=False,
  )
  with pytest.raises(errors.TaskError, match=r"'flat' of shape \(8, 6\); give"):
    experiment.prepare(tmp_path)

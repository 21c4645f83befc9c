"""What a run shows: artifacts, histograms, descriptions, hparams and sinks."""

import logging
import sys

import gin
from google.protobuf import text_format
import keras
import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.pr_curve import summary as pr_summary
import tensorflow as tf

from tests import boards
from tests import cases
import tftrain
from tftrain import errors
from tftrain.config import loader
from tftrain.experiment import _hparams
from tftrain.experiment import _parameter_overview
from tftrain.platform import _filesystem
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.platform import literals
from tftrain.summary import artifacts as artifacts_lib
from tftrain.summary import metrics_file as metrics_file_lib
from tftrain.summary import summary_writer as summary_writer_lib


def events(directory):
  found = event_accumulator.EventAccumulator(
    str(directory), size_guidance={'tensors': 0}
  )
  found.Reload()
  return found


def written(directory, tag):
  """(plugin, steps, the last value) of a tag."""
  found = events(directory)
  plugin = found.SummaryMetadata(tag).plugin_data.plugin_name
  tensors = found.Tensors(tag)
  last = tf.make_ndarray(tensors[-1].tensor_proto)
  return plugin, [event.step for event in tensors], last


class Shows(tftrain.SupervisedTask):
  """Shows what the attribute `_shown` makes of a batch."""

  def artifacts(self, batch):
    return self._shown(batch)


def showing(shown):
  task = Shows(
    cases.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )
  task._shown = shown
  return task


def train(tmp_path, task=cases.supervised, steps=4, **options):
  return tftrain.Experiment(
    task,
    lambda: tftrain.Arrays(cases.arrays(), 8),
    lambda: tftrain.Arrays(cases.arrays(seed=1), 8, training=False),
    steps=steps,
    **{'eval_every': 2, 'log_every': 2, 'export': False, **options},
  ).train(tmp_path)


def shown_by(tmp_path, value):
  """(plugin, last value) of an artifact, written by a run."""
  train(tmp_path, lambda: showing(lambda batch: {'shown': value(batch)}))
  plugin, steps, last = written(tmp_path / 'eval' / 'test', 'shown')
  assert steps == [2, 4]
  return plugin, last


def refusal(shown):
  with pytest.raises(errors.TaskError) as raised:
    artifacts_lib.prepared('Shows', {'a': shown})
  (line,) = str(raised.value).splitlines()
  assert line.startswith("artifacts() of Shows returned 'a' ")
  return line


@pytest.mark.slow
def test_ten_thousand_metrics_whatever_their_values(tmp_path):
  names = [f'group_{i % 100}/metric_{i}' for i in range(10_000)]
  odd = [float('nan'), float('inf'), 1e300, -1e300, 1e-320, 0.0]
  scalars = {
    name: odd[i % 7] if i % 7 < 6 else 1.0 + i for i, name in enumerate(names)
  }
  writer = summary_writer_lib.SummaryWriter(tmp_path)
  metrics_file = metrics_file_lib.MetricsFile(tmp_path)
  for take in (writer, metrics_file):
    take(cases.report(1, scalars=scalars))
  writer.close()
  shown = events(tmp_path / 'train')
  assert set(shown.Tags()['tensors']) == set(names)
  for name in names[:14]:
    _, steps, value = written(tmp_path / 'train', name)
    assert steps == [1]
    np.testing.assert_array_equal(value, np.float32(scalars[name]))
  (line,) = jsonl.read(tmp_path / 'metrics.jsonl')
  assert {name: float(line[name]) for name in names if line[name] != 'nan'} == {
    name: value for name, value in scalars.items() if not np.isnan(value)
  }


# Artifacts.


def test_sounds_can_be_listened_to(tmp_path):
  wave = np.sin(np.arange(800) / 10).astype('float32')
  clips = np.stack([wave, -wave, 0 * wave, wave / 2])[..., None]
  plugin, value = shown_by(
    tmp_path, lambda _: tftrain.summary.Audio(clips, 8000)
  )
  assert plugin == 'audio'
  assert len(value) == 4  # TensorBoard's own default would be three
  sound, rate = tf.audio.decode_wav(value[1][0])
  assert rate == 8000
  np.testing.assert_allclose(sound, clips[1], atol=1e-4)


def test_a_table_is_markdown(tmp_path):
  table = tftrain.summary.Table(
    ['name', 'value'], [['a|b', 0.123456], ['two\nlines', np.float32(2)]]
  )
  plugin, value = shown_by(tmp_path, lambda _: table)
  assert plugin == 'text'
  assert value.item().decode().splitlines() == [
    '| name | value |',
    '| --- | --- |',
    r'| a\|b | 0.1235 |',
    '| two lines | 2 |',
  ]


@pytest.mark.parametrize(
  'values', [np.random.RandomState(0).normal(size=(40, 50)), np.full(7, 3.0)]
)
def test_a_histogram_is_that_of_tensorflow(tmp_path, values):
  plugin, value = shown_by(
    tmp_path, lambda _: tftrain.summary.Histogram(values)
  )
  with tf.summary.create_file_writer(str(tmp_path / 'other')).as_default(0):
    tf.summary.histogram('shown', values)
  expected = written(tmp_path / 'other', 'shown')
  assert plugin == expected[0] == 'histograms'
  np.testing.assert_allclose(value, expected[2], atol=1e-12)


@pytest.mark.parametrize(
  ('values', 'count'),
  [([1.0, np.nan, 2.0, np.inf], 2), ([np.nan], 0), ([], 0), ([True, False], 2)],
)
def test_a_histogram_leaves_out_what_is_not_finite(tmp_path, values, count):
  with tf.summary.create_file_writer(str(tmp_path)).as_default(0):
    artifacts_lib.write('a', tftrain.summary.Histogram(values))
  _, _, value = written(tmp_path, 'a')
  assert value.shape == (30, 3)
  assert value[:, 2].sum() == count
  assert np.isfinite(value).all()


def test_a_precision_recall_curve_is_that_of_tensorboard(tmp_path):
  random = np.random.RandomState(0)
  labels = random.rand(3, 100) < 0.3
  scores = random.rand(3, 100).astype('float32')
  plugin, value = shown_by(
    tmp_path, lambda _: tftrain.summary.PrCurve(labels, tf.constant(scores))
  )
  assert plugin == 'pr_curves'
  expected = pr_summary.pb('a', labels, scores).value[0].tensor
  np.testing.assert_allclose(value, tf.make_ndarray(expected), rtol=1e-6)


def test_a_precision_recall_curve_by_hand(tmp_path):
  labels, scores = [1, 0, 1, 0, 1], [1.0, 0.6, 0.5, 0.0, np.nan]
  with tf.summary.create_file_writer(str(tmp_path)).as_default(0):
    artifacts_lib.write('a', tftrain.summary.PrCurve(labels, scores))
  _, _, value = written(tmp_path, 'a')
  np.testing.assert_allclose(value[:, 0], [2, 2, 0, 0, 0.5, 1])
  np.testing.assert_allclose(value[:, 110], [1, 1, 1, 1, 0.5, 0.5])
  np.testing.assert_allclose(value[:, 200], [1, 0, 2, 1, 1, 0.5])


def drawn():
  figure = matplotlib.figure.Figure(figsize=(2, 1), dpi=50)
  figure.subplots().plot([1, 2, 3])
  return figure


def test_a_figure_is_drawn(tmp_path):
  plugin, value = shown_by(tmp_path, lambda _: drawn())
  assert plugin == 'images'
  width, height, picture = value
  assert (width, height) == (b'100', b'50')
  pixels = tf.io.decode_png(picture, channels=3).numpy()
  assert pixels.shape == (50, 100, 3)
  assert pixels.std() > 5  # something is on it


def test_figures_of_pyplot_are_closed():
  before = plt.get_fignums()
  figure = plt.figure()
  shown = artifacts_lib.prepared('Shows', {'a': figure})
  assert plt.get_fignums() == before
  assert shown['a'].png.startswith(b'\x89PNG')


def test_nothing_imports_matplotlib(monkeypatch):
  for name in [name for name in sys.modules if name.startswith('matplotlib')]:
    monkeypatch.delitem(sys.modules, name)
  artifacts_lib.prepared('Shows', {'a': np.zeros((1, 2, 2, 1))})
  assert 'matplotlib' not in sys.modules


def test_a_confusion_matrix_counts(tmp_path):
  found = tftrain.summary.confusion_matrix(
    tf.constant([0, 0, 1, 2, 2, 2]), [0, 1, 1, 2, 2, 0], ['a', 'b', 'c']
  )
  assert found.markdown().splitlines() == [
    '| label | a | b | c |',
    '| --- | --- | --- | --- |',
    '| a | 1 | 1 | 0 |',
    '| b | 0 | 1 | 0 |',
    '| c | 1 | 0 | 2 |',
  ]
  assert artifacts_lib.prepared('Shows', {'a': found}) == {'a': found}


def test_a_confusion_matrix_can_be_drawn():
  image = tftrain.summary.confusion_matrix(
    [0, 0, 1], [0, 1, 1], 'abc', image=True
  )
  artifacts_lib.prepared('Shows', {'a': image})
  assert image.shape == (1, 48, 48, 3) and image.dtype == np.uint8
  squares = image[0, 8::16, 8::16]
  assert squares[1, 1].tolist() == [8, 48, 107]  # all of them
  assert squares[0, 0].tolist() == squares[0, 1].tolist() == [132, 152, 181]
  assert squares[1, 0].tolist() == squares[2, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
  ('labels', 'predictions', 'said'),
  [
    ([0, 1], [[0.1, 0.9], [0.3, 0.7]], '2 labels and 4 predictions; give one'),
    ([0, 2], [0, 1], 'the class 2 and 2 names; give whole numbers of 0 to 1'),
    ([0, 1], [0.0, 0.5], 'the class 0.5 and 2 names'),
    ([0, -1], [0, 1], 'the class -1 and 2 names'),
  ],
)
def test_a_wrong_confusion_matrix_is_refused(labels, predictions, said):
  with pytest.raises(errors.TaskError, match=f'^confusion_matrix has {said}'):
    tftrain.summary.confusion_matrix(labels, predictions, ['a', 'b'])


@pytest.mark.parametrize(
  ('shown', 'said'),
  [
    (
      tftrain.summary.Audio(np.zeros((2, 9)), 8),
      'samples of shape (2, 9); give fl',
    ),
    (
      tftrain.summary.Audio(np.zeros((1, 9, 1), int), 8),
      'samples of shape (1, 9, 1)',
    ),
    (
      tftrain.summary.Audio([0.0], 8),
      'samples of type list; give floats [clips',
    ),
    (
      tftrain.summary.Audio(np.zeros((1, 9, 1)), 0),
      'sample_rate 0; give frames',
    ),
    (tftrain.summary.Table('ab', []), "columns 'ab'; give a list of names"),
    (tftrain.summary.Table([], []), 'columns []; give a list of names'),
    (
      tftrain.summary.Table(['a', 'b'], [[1, 2], [3]]),
      'a row 1 of 1 values for 2 col',
    ),
    (
      tftrain.summary.Table(['a', 'b'], ['xy']),
      'a row 0 of type str; give a list',
    ),
    (tftrain.summary.Table(['a'], [3]), 'a row 0 of type int; give a list'),
    (tftrain.summary.Histogram(['a']), 'values of type list; give numbers'),
    (
      tftrain.summary.PrCurve([0, 1], [0.5]),
      'labels of type list and scores of ty',
    ),
    (tftrain.summary.PrCurve([0, 2], [0.5, 0.5]), 'the label 2; give 0 or 1'),
    (
      tftrain.summary.PrCurve([0, 1], [0.5, 1.5]),
      'the score 1.5; give probabilities',
    ),
    (
      tftrain.summary.PrCurve([0, 1], [-3, 0.5]),
      'the score -3; give probabilities',
    ),
    (np.zeros((1, 2, 2, 5)), 'of shape (1, 2, 2, 5); give 1 to 4 channels'),
    (np.zeros((1, 2, 2, 1), int), 'of int64 images; give uint8, or floats'),
    (object(), 'of type object; give images'),
  ],
)
def test_what_cannot_be_shown_is_named(shown, said):
  assert said in refusal(shown)


def test_what_cannot_be_shown_is_refused_before_anything_is_written(tmp_path):
  model_dir = tmp_path / 'run'
  wrong = tftrain.summary.Audio(np.zeros((2, 9)), 8)
  with pytest.raises(errors.TaskError, match="'shown' with samples of shape"):
    train(model_dir, lambda: showing(lambda _: {'shown': wrong}))
  assert not model_dir.exists()


def test_a_kind_of_ones_own_is_an_artifact(tmp_path):
  class Loud:
    def __init__(self, text):
      self._text = text

    def fault(self):
      return None if self._text else 'no text; give one'

    def write(self, tag):
      tf.summary.text(tag, self._text.upper())

  assert shown_by(tmp_path, lambda _: Loud('hush'))[1] == b'HUSH'
  assert refusal(Loud('')).endswith("'a' with no text; give one")


# Histograms.


def histogram_tags(directory):
  found = events(directory)
  return {
    tag: [event.step for event in found.Tensors(tag)]
    for tag in found.Tags()['tensors']
    if found.SummaryMetadata(tag).plugin_data.plugin_name == 'histograms'
  }


NAMES = [
  f'model/sequential/{layer}/{part}'
  for layer in ('dense', 'dense_1')
  for part in ('kernel', 'bias')
]


def test_weights_are_shown_at_their_interval_and_at_the_end(tmp_path):
  train(tmp_path, steps=7, actions=[tftrain.actions.WeightHistograms(3)])
  assert histogram_tags(tmp_path / 'train') == {
    f'weights/{name}': [3, 6, 7] for name in NAMES
  }


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_weights_and_gradients_are_the_right_ones(tmp_path, strategy):
  run = tftrain.Experiment(
    cases.supervised,
    lambda: tftrain.Arrays(cases.arrays(), 8),
    steps=4,
    export=False,
    strategy=strategy,
    actions=[tftrain.actions.WeightHistograms(4, gradients=True)],
  ).prepare(tmp_path)
  run.train()
  assert list(histogram_tags(tmp_path / 'train')) == [
    f'{kind}/{name}' for kind in ('weights', 'gradients') for name in NAMES
  ]
  task = run.trainer.task
  (kernel, bias), (x, y) = (
    task.model.layers[-1].weights,
    run.trainer.example_batch,
  )
  _, _, value = written(tmp_path / 'train', f'weights/{NAMES[2]}')
  assert value[0, 0] == pytest.approx(np.min(kernel.numpy()))
  assert value[:, 2].sum() == kernel.numpy().size
  # The gradient of a softmax with cross-entropy, by hand.
  error = tf.nn.softmax(task.model(x)) - tf.one_hot(y, 3)
  expected = tf.reduce_mean(error, 0).numpy()
  assert bias.shape == expected.shape
  _, _, value = written(tmp_path / 'train', f'gradients/{NAMES[3]}')
  assert value[0, 0] == pytest.approx(expected.min(), rel=1e-5)
  assert value[-1, 1] == pytest.approx(expected.max(), rel=1e-5)


@pytest.mark.parametrize('options', [{}, {'update': tftrain.Update(ema=0.9)}])
def test_looking_changes_nothing(tmp_path, options):
  def state_after(name, actions):
    keras.utils.set_random_seed(0)
    run = tftrain.Experiment(
      lambda: cases.supervised(dropout=0.5),
      lambda: tftrain.Arrays(cases.arrays(), 8),
      steps=9,
      export=False,
      actions=actions,
      **options,
    ).prepare(tmp_path / name)
    run.train()
    return cases.state_of(run.trainer)

  cases.assert_same_bits(
    state_after('plain', []),
    state_after(
      'looked', [tftrain.actions.WeightHistograms(2, gradients=True)]
    ),
  )


@pytest.mark.slow
def test_a_recipe_can_be_used_twice(tmp_path):
  histograms = tftrain.actions.WeightHistograms(2)
  for action in (histograms, tftrain.Every(2, histograms)):
    recipe = tftrain.Experiment(
      cases.supervised,
      lambda: tftrain.Arrays(cases.arrays(), 8),
      steps=2,
      export=False,
      actions=[action],
    )
    kind = type(action).__name__
    one, other = (recipe.prepare(tmp_path / kind / name) for name in 'ab')
    other.train()
    one.train()
    for name in 'ab':
      found = histogram_tags(tmp_path / kind / name / 'train')
      assert list(found.values()) == [[2]] * 4


def test_histograms_that_belong_to_nothing_say_so():
  trainer = tftrain.Trainer(
    cases.supervised(), tftrain.Arrays(cases.arrays(), 8)
  )
  with pytest.raises(
    errors.ConfigError, match=r'^WeightHistograms does not know'
  ):
    trainer.train(1, [tftrain.actions.WeightHistograms(1)])


def test_gradients_that_cannot_be_had_are_refused_before_step_1(tmp_path):
  class Own(tftrain.Task):
    def train_step(self, batch):
      def loss(rows, training):
        return tftrain.Loss(self.model(rows[0], training=training)[:, 0] ** 2)

      return self.minimize(loss, batch)

  with pytest.raises(errors.ConfigError, match='Own has no loss'):
    tftrain.Experiment(
      lambda: Own(cases.model(), keras.optimizers.SGD()),
      lambda: tftrain.Arrays(cases.arrays(), 8),
      steps=2,
      export=False,
      actions=[tftrain.actions.WeightHistograms(gradients=True)],
    ).prepare(tmp_path)


@pytest.fixture
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def test_gin_gives_histograms_and_sinks(tmp_path, fresh_gin):
  path = tmp_path / 'run.gin'
  path.write_text(
    'import tests.recipes\n'
    'Experiment.task = @recipes.make_task\n'
    'Experiment.train_data = @recipes.train_data\n'
    'Experiment.steps = 4\n'
    'Experiment.export = False\n'
    'Experiment.actions = [@WeightHistograms(), @CsvWriter()]\n'
    'WeightHistograms.every = 2\n'
    "CsvWriter.path = 'lines/own.csv'\n"
  )
  loader.load([str(path)]).train(tmp_path / 'run')
  loader.check_used()
  found = histogram_tags(tmp_path / 'run' / 'train')
  assert list(found.values()) == [[2, 4]] * 4
  assert (tmp_path / 'run' / 'lines' / 'own.csv').exists()


class Full(_filesystem.Disk):
  """A disk that takes no events."""

  def make_directory(self, path):
    if path.name == 'train':
      raise OSError(28, 'No space left on device')
    super().make_directory(path)


def test_what_cannot_be_written_is_warned_of_once(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(files, 'disk', Full())
  result = train(
    tmp_path, steps=6, actions=[tftrain.actions.WeightHistograms(1)]
  )
  assert result.step == 6
  said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
  assert len([text for text in said if 'Summaries below' in text]) == 1


# Overviews and hparams, as TensorBoard reads them.


def test_the_hparams_tab_holds_no_secrets(tmp_path):
  run = tftrain.Experiment(
    cases.supervised,
    lambda: tftrain.Arrays(cases.arrays(), 8),
    steps=2,
    export=False,
  ).prepare(tmp_path)
  run.train(bindings=["load.api_key = 'abc123'"])
  written = b''.join(p.read_bytes() for p in tmp_path.rglob('events.*'))
  assert b'api_key' in written and b'abc123' not in written


def test_the_hparams_tab_shows_values_and_final_metrics(tmp_path):
  results = {}
  for seed in (1, 2):
    run = tftrain.Experiment(
      cases.supervised,
      lambda: tftrain.Arrays(cases.arrays(), 8),
      lambda: tftrain.Arrays(cases.arrays(seed=1), 8, training=False),
      steps=4,
      export=False,
      seed=seed,
    ).prepare(tmp_path / f'run_{seed}')
    bindings = [f'Experiment.seed = {seed}', "cases.kind = 'x'\nA.b = @c"]
    results[seed] = run.train(bindings=bindings).scalars
  rows = {row[0]['seed']: row for row in boards.hparams_rows(tmp_path)}
  assert list(rows) == [1, 2]
  for seed, (given, metrics) in rows.items():
    assert given == {
      'seed': seed,
      'steps': 4,
      'strategy': 'auto',
      'replicas': 1,
      'optimizer': 'Adam',
      'learning_rate': 0.01,
      'Experiment.seed': seed,
      'cases.kind': 'x',
      'A.b': '@c',
    }
    for name in ('eval/test/accuracy', 'eval/test/loss', 'train/loss'):
      assert metrics[name] == pytest.approx(results[seed][name], rel=1e-6)


@pytest.mark.slow
def test_one_run_alone_has_its_row_and_a_resumed_one_has_one(tmp_path):
  for steps in (4, 8):
    train(tmp_path / 'run', steps=steps)
  ((given, metrics),) = boards.hparams_rows(tmp_path)
  assert given['steps'] == 4  # as it was begun
  _, _, last = written(tmp_path / 'run' / 'eval' / 'test', 'loss')
  assert metrics['eval/test/loss'] == pytest.approx(last)
  # TensorBoard looks for metrics below a row's directory, and not in `.`.
  assert boards.hparams_rows(tmp_path / 'run') == [(given, {})]


def test_a_schedule_and_several_optimizers_are_no_plain_rates():
  task = cases.supervised()
  task.optimizer = keras.optimizers.SGD(
    keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
  )
  assert _hparams.of_run(task, {'none': None}, [], '').values == {
    'optimizer': 'SGD'
  }
  task.other_optimizer = keras.optimizers.Adam(3e-4)
  assert _hparams.of_run(task, {}, [], '').values == {
    'optimizer': 'SGD',
    'other_optimizer': 'Adam',
    'other_optimizer/learning_rate': 0.0003,
  }


@pytest.mark.parametrize(
  ('binding', 'found'),
  [
    ('STEPS = 500', {'STEPS': 500}),
    ('train/f.x = -1.5e-3', {'train/f.x': -0.0015}),
    ('f.x = True', {'f.x': True}),
    ("f.x = 'a = b'", {'f.x': 'a = b'}),
    ('f.x = [1, 2]', {'f.x': '[1, 2]'}),
    ('f.x = None', {'f.x': 'None'}),
    ('f.x = %MACRO', {'f.x': '%MACRO'}),
    ('import os', {}),
  ],
)
def test_bindings_become_values(binding, found):
  assert literals.assigned([binding]) == found


@pytest.mark.slow
def test_parameters_and_graph_are_shown_once(tmp_path):
  train(tmp_path)
  plugin, steps, value = written(tmp_path / 'train', 'parameters')
  assert (plugin, steps) == ('text', [0])
  assert value.item().decode().splitlines()[2:] == [
    '| `model/sequential/dense` | Dense | 56 | 56 |',
    '| `model/sequential/dense_1` | Dense | 27 | 27 |',
    '| **all** |  | 83 | 83 |',
  ]
  answer = boards.tensorboard_of(tmp_path).get(
    '/data/plugin/graphs/graph?run=train'
  )
  graph = tf.compat.v1.GraphDef()
  text_format.Parse(answer.get_data(as_text=True), graph)
  # A layer's name has a number that Keras made up.
  kinds = [node.op for node in graph.node]
  assert kinds == ['InputLayer', 'Dense', 'Dropout', 'Dense']
  names = [node.name for node in graph.node]
  assert all(name.startswith('model/sequential') for name in names)
  assert [list(node.input) for node in graph.node[1:]] == [
    [name] for name in names[:-1]
  ]


def test_the_graph_of_several_models_is_one(tmp_path):
  class Two(tftrain.SupervisedTask):
    def __init__(self, *arguments):
      super().__init__(*arguments)
      x = keras.Input((6,))
      wide, deep = keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)
      self.other = keras.Model(x, keras.layers.Add()([wide, deep]))

  loss = keras.losses.MeanSquaredError()
  task = Two(cases.model(), loss, keras.optimizers.SGD())
  nodes = _parameter_overview.of_task(task)['graph'].nodes.node
  assert [node.name.split('/')[0] for node in nodes] == (
    ['model'] * 4 + ['other'] * 4
  )
  assert len(nodes[-1].input) == 2
  assert set(nodes[-1].input) < {node.name for node in nodes}


def test_what_has_no_graph_is_left_out(tmp_path):
  class Subclassed(keras.Model):
    def __init__(self):
      super().__init__()
      self.dense = keras.layers.Dense(3)

    def call(self, x):
      return self.dense(x)

  def make_task():
    return tftrain.SupervisedTask(
      Subclassed(),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      keras.optimizers.SGD(0.1),
    )

  train(tmp_path, make_task)
  tags = events(tmp_path / 'train').Tags()['tensors']
  assert 'parameters' in tags
  assert not events(tmp_path / 'train').Tags()['graph']


@pytest.mark.slow
def test_frozen_parameters_are_told_apart(tmp_path):
  def make_task():
    task = cases.supervised()
    task.model.layers[0].trainable = False
    return task

  train(tmp_path, make_task)
  _, _, value = written(tmp_path / 'train', 'parameters')
  lines = value.item().decode().splitlines()
  assert lines[2] == '| `model/sequential/dense` | Dense | 56 | 0 |'
  assert lines[-1] == '| **all** |  | 83 | 27 |'


# Sinks.


class Kept(tftrain.summary.MetricWriter):
  def __init__(self, kept):
    self._kept = kept

  def write(self, report):
    self._kept.append((report.source, report.step, dict(report.scalars)))


def test_a_sink_hears_of_training_and_of_evaluations(tmp_path):
  kept = []
  train(tmp_path, actions=[Kept(kept)])
  assert [(source, step) for source, step, _ in kept] == [
    ('train', 2), ('eval/test', 2), ('train', 4), ('eval/test', 4)
  ]  # fmt: skip
  assert all(scalars['loss'] > 0 for _, _, scalars in kept)


class Broken(tftrain.summary.MetricWriter):
  tries = 0

  def write(self, report):
    Broken.tries += 1
    raise RuntimeError(f'no connection at step {report.step}')


def test_a_sink_that_fails_stops_nothing(tmp_path, caplog):
  Broken.tries = 0
  kept = []
  result = train(tmp_path, actions=[Broken(), Kept(kept)])
  assert result.step == 4 and len(kept) == Broken.tries == 4
  (line,) = [
    r.getMessage() for r in caplog.records if 'Broken' in r.getMessage()
  ]
  assert line == (
    'Reports to Broken cannot be written (no connection at step 2); training '
    'goes on without them.'
  )


def test_a_sink_needs_write():
  with pytest.raises(TypeError, match='write'):
    tftrain.summary.MetricWriter()


def csv_lines(path):
  return path.read_text().splitlines()


def test_a_csv_file_has_a_line_for_each_report(tmp_path):
  result = train(tmp_path, actions=[tftrain.summary.CsvWriter()])
  header, *lines = csv_lines(tmp_path / 'metrics.csv')
  assert header.startswith('step,source,loss,accuracy,')
  assert [line.split(',')[:2] for line in lines] == [
    ['2', 'train'], ['2', 'eval/test'], ['4', 'train'], ['4', 'eval/test']
  ]  # fmt: skip
  assert float(lines[-1].split(',')[2]) == result.scalars['eval/test/loss']


def test_a_csv_file_gets_columns_as_they_come(tmp_path):
  sink = tftrain.summary.CsvWriter(tmp_path / 'deep' / 'own.csv')
  for step, scalars in (
    (1, {'a': 1.0}),
    (2, {'a, "b"': float('nan')}),
    (3, {'a': 1e300, 'c': 2.5}),
  ):
    sink(cases.report(step, scalars=scalars))
  assert csv_lines(tmp_path / 'deep' / 'own.csv') == [
    'step,source,a,"a, ""b""",c',
    '1,train,1.0,,',
    '2,train,,nan,',
    '3,train,1e+300,,2.5',
  ]


def test_a_resumed_run_takes_lines_back(tmp_path):
  path = tmp_path / 'own.csv'
  path.write_text('step,source,a\n10,train,1.0\n20,train,9.0\n30,tr')
  sink = tftrain.summary.CsvWriter(path)
  for step, value in ((10, 7.0), (20, 2.0), (30, 3.0)):
    sink(cases.report(step, start_step=10, scalars={'a': value}))
  lines = ['step,source,a', '10,train,1.0', '20,train,2.0', '30,train,3.0']
  assert csv_lines(path) == lines
  # The run goes back to step 10, twice.
  for value in (4.0, 5.0):
    sink(cases.report(20, start_step=10, scalars={'a': value}))
    sink(cases.report(25, start_step=10, scalars={'a': value}))
  assert csv_lines(path) == [
    *lines[:2], '20,train,5.0', '25,train,5.0'
  ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_the_lines_of_an_unbroken_one(tmp_path):
  def go(name, *steps):
    for last in steps:
      keras.utils.set_random_seed(0)
      train(
        tmp_path / name,
        steps=last,
        checkpoint_every=2,
        actions=[tftrain.summary.CsvWriter()],
      )
    return (tmp_path / name / 'metrics.csv').read_text()

  assert go('broken', 4, 8) == go('whole', 8)


def test_a_file_that_is_something_else_is_left_alone(tmp_path, caplog):
  path = tmp_path / 'own.csv'
  path.write_text('precious,data\n1,2\n')
  sink = tftrain.summary.CsvWriter(path)
  sink(cases.report(1, scalars={'a': 1.0}))
  assert path.read_text() == 'precious,data\n1,2\n'
  assert 'own.csv is no file of a CsvWriter; remove it' in caplog.text

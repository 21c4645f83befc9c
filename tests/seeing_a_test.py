"""What a run shows: artifacts, histograms, descriptions, hparams and sinks."""

import sys

import keras
import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.pr_curve import summary as pr_summary
import tensorflow as tf

from tests import cases
import tftrain
from tftrain import artifacts
from tftrain import errors


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
    artifacts.prepared('Shows', {'a': shown})
  (line,) = str(raised.value).splitlines()
  assert line.startswith("artifacts() of Shows returned 'a' ")
  return line


# Artifacts.


def test_sounds_can_be_listened_to(tmp_path):
  wave = np.sin(np.arange(800) / 10).astype('float32')
  clips = np.stack([wave, -wave, 0 * wave, wave / 2])[..., None]
  plugin, value = shown_by(tmp_path, lambda _: tftrain.Audio(clips, 8000))
  assert plugin == 'audio'
  assert len(value) == 4  # TensorBoard's own default would be three
  sound, rate = tf.audio.decode_wav(value[1][0])
  assert rate == 8000
  np.testing.assert_allclose(sound, clips[1], atol=1e-4)


def test_a_table_is_markdown(tmp_path):
  table = tftrain.Table(
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
  plugin, value = shown_by(tmp_path, lambda _: tftrain.Histogram(values))
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
    artifacts.write('a', tftrain.Histogram(values))
  _, _, value = written(tmp_path, 'a')
  assert value.shape == (30, 3)
  assert value[:, 2].sum() == count
  assert np.isfinite(value).all()


def test_a_precision_recall_curve_is_that_of_tensorboard(tmp_path):
  random = np.random.RandomState(0)
  labels = random.rand(3, 100) < 0.3
  scores = random.rand(3, 100).astype('float32')
  plugin, value = shown_by(
    tmp_path, lambda _: tftrain.PrCurve(labels, tf.constant(scores))
  )
  assert plugin == 'pr_curves'
  expected = pr_summary.pb('a', labels, scores).value[0].tensor
  np.testing.assert_allclose(value, tf.make_ndarray(expected), rtol=1e-6)


def test_a_precision_recall_curve_by_hand(tmp_path):
  labels, scores = [1, 0, 1, 0, 1], [1.0, 0.6, 0.5, 0.0, np.nan]
  with tf.summary.create_file_writer(str(tmp_path)).as_default(0):
    artifacts.write('a', tftrain.PrCurve(labels, scores))
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
  shown = artifacts.prepared('Shows', {'a': figure})
  assert plt.get_fignums() == before
  assert shown['a'].png.startswith(b'\x89PNG')


def test_nothing_imports_matplotlib(monkeypatch):
  for name in [name for name in sys.modules if name.startswith('matplotlib')]:
    monkeypatch.delitem(sys.modules, name)
  artifacts.prepared('Shows', {'a': np.zeros((1, 2, 2, 1))})
  assert 'matplotlib' not in sys.modules


def test_a_confusion_matrix_counts(tmp_path):
  found = tftrain.confusion_matrix(
    tf.constant([0, 0, 1, 2, 2, 2]), [0, 1, 1, 2, 2, 0], ['a', 'b', 'c']
  )
  assert found.markdown().splitlines() == [
    '| label | a | b | c |',
    '| --- | --- | --- | --- |',
    '| a | 1 | 1 | 0 |',
    '| b | 0 | 1 | 0 |',
    '| c | 1 | 0 | 2 |',
  ]
  assert artifacts.prepared('Shows', {'a': found}) == {'a': found}


def test_a_confusion_matrix_can_be_drawn():
  image = tftrain.confusion_matrix([0, 0, 1], [0, 1, 1], 'abc', image=True)
  artifacts.prepared('Shows', {'a': image})
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
    tftrain.confusion_matrix(labels, predictions, ['a', 'b'])


@pytest.mark.parametrize(
  ('shown', 'said'),
  [
    (tftrain.Audio(np.zeros((2, 9)), 8), 'samples of shape (2, 9); give fl'),
    (tftrain.Audio(np.zeros((1, 9, 1), int), 8), 'samples of shape (1, 9, 1)'),
    (tftrain.Audio([0.0], 8), 'samples of type list; give floats [clips'),
    (tftrain.Audio(np.zeros((1, 9, 1)), 0), 'sample_rate 0; give frames'),
    (tftrain.Table('ab', []), "columns 'ab'; give a list of names"),
    (tftrain.Table([], []), 'columns []; give a list of names'),
    (tftrain.Table(['a', 'b'], [[1, 2], [3]]), 'a row 1 of 1 values for 2 col'),
    (tftrain.Table(['a', 'b'], ['xy']), 'a row 0 of type str; give a list'),
    (tftrain.Table(['a'], [3]), 'a row 0 of type int; give a list'),
    (tftrain.Histogram(['a']), 'values of type list; give numbers'),
    (tftrain.PrCurve([0, 1], [0.5]), 'labels of type list and scores of ty'),
    (tftrain.PrCurve([0, 2], [0.5, 0.5]), 'the label 2; give 0 or 1'),
    (tftrain.PrCurve([0, 1], [0.5, 1.5]), 'the score 1.5; give probabilities'),
    (tftrain.PrCurve([0, 1], [-3, 0.5]), 'the score -3; give probabilities'),
    (np.zeros((1, 2, 2, 5)), 'of shape (1, 2, 2, 5); give 1 to 4 channels'),
    (np.zeros((1, 2, 2, 1), int), 'of int64 images; give uint8, or floats'),
    (object(), 'of type object; give images'),
  ],
)
def test_what_cannot_be_shown_is_named(shown, said):
  assert said in refusal(shown)


def test_what_cannot_be_shown_is_refused_before_anything_is_written(tmp_path):
  model_dir = tmp_path / 'run'
  wrong = tftrain.Audio(np.zeros((2, 9)), 8)
  with pytest.raises(errors.TaskError, match="'shown' with samples of shape"):
    train(model_dir, lambda: showing(lambda _: {'shown': wrong}))
  assert not model_dir.exists()

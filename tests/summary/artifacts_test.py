"""Artifacts: images, sounds, tables, curves and figures in TensorBoard."""

import sys

import keras
import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest
from tensorboard.plugins.pr_curve import summary as pr_summary
import tensorflow as tf

from tests.support import error_lines
from tests.support import event_files
from tests.support import shown_runs
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.summary import artifacts as artifacts_lib


def evaluator(shown):
  class Shows(tftrain.SupervisedTask):
    def artifacts(self, batch):
      return shown

  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return tftrain.Evaluator(
    Shows(small_tasks.model(), loss, keras.optimizers.SGD()),
    tftrain.Arrays(small_tasks.arrays(), 8, training=False),
  )


@pytest.mark.parametrize(
  ('shown', 'said'),
  [
    (None, 'returned None; return {name: images or str}, or {}'),
    ([np.zeros((1, 2, 2, 1))], 'returned a list; return {name'),
    ({'a': 3}, "'a' of type int; give images"),
    ({'a': None}, "'a' of type NoneType; give images"),
    ({'a': [np.zeros((2, 2, 1))]}, "'a' of type list; give images"),
    ({'a': np.zeros((2, 2, 1))}, "'a' of shape (2, 2, 1); give images"),
    ({3: 'text'}, 'the name 3; give a str'),
  ],
)
def test_artifacts_that_are_none_are_named(shown, said):
  with error_lines.refused(errors.TaskError, 'artifacts() of Shows', said):
    evaluator(shown)


def test_artifacts_may_be_arrays_tensors_and_texts():
  array = np.zeros((1, 2, 2, 1))
  shown = {'array': array, 'tensor': tf.constant(array), 'text': 'a text'}
  for artifacts in (shown, {}):
    assert evaluator(artifacts).evaluate()['loss'] > 0


class Looks(tftrain.SupervisedTask):
  def artifacts(self, batch):
    x, _ = batch
    images = tf.reshape(x[:3], [3, 2, 3, 1])
    return {'pictures': images, 'words': f'**{len(x)}** rows'}


def looking(kind):
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return kind(small_tasks.model(), loss, keras.optimizers.Adam(0.05))


def test_artifacts_are_in_the_events(tmp_path):
  tftrain.Experiment(
    lambda: looking(Looks),
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(seed=1), 8, training=False),
    steps=20,
    eval_every=10,
    export=False,
  ).train(tmp_path)
  found = event_files.events(tmp_path / 'eval' / 'test')
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
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(seed=1), 8, training=False),
    steps=2,
    export=False,
  )
  with pytest.raises(errors.TaskError, match=r"'flat' of shape \(8, 6\); give"):
    experiment.prepare(tmp_path)


class Shows(tftrain.SupervisedTask):
  """Shows what the attribute `_shown` makes of a batch."""

  def artifacts(self, batch):
    return self._shown(batch)


def showing(shown):
  task = Shows(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )
  task._shown = shown
  return task


def shown_by(tmp_path, value):
  """(plugin, last value) of an artifact, written by a run."""
  shown_runs.train(
    tmp_path, lambda: showing(lambda batch: {'shown': value(batch)})
  )
  plugin, steps, last = shown_runs.written(tmp_path / 'eval' / 'test', 'shown')
  assert steps == [2, 4]
  return plugin, last


def refusal(shown):
  with pytest.raises(errors.TaskError) as raised:
    artifacts_lib.prepared('Shows', {'a': shown})
  (line,) = str(raised.value).splitlines()
  assert line.startswith("artifacts() of Shows returned 'a' ")
  return line


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
  expected = shown_runs.written(tmp_path / 'other', 'shown')
  assert plugin == expected[0] == 'histograms'
  np.testing.assert_allclose(value, expected[2], atol=1e-12)


@pytest.mark.parametrize(
  ('values', 'count'),
  [([1.0, np.nan, 2.0, np.inf], 2), ([np.nan], 0), ([], 0), ([True, False], 2)],
)
def test_a_histogram_leaves_out_what_is_not_finite(tmp_path, values, count):
  with tf.summary.create_file_writer(str(tmp_path)).as_default(0):
    artifacts_lib.write('a', tftrain.summary.Histogram(values))
  _, _, value = shown_runs.written(tmp_path, 'a')
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
  _, _, value = shown_runs.written(tmp_path, 'a')
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
    shown_runs.train(model_dir, lambda: showing(lambda _: {'shown': wrong}))
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

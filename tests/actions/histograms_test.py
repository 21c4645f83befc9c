"""Histograms: weights and gradients, without an effect on training."""

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import event_files
from tests.support import shown_runs
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.config import loader


def histogram_tags(directory):
  found = event_files.events(directory)
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
  shown_runs.train(
    tmp_path, steps=7, actions=[tftrain.actions.WeightHistograms(3)]
  )
  assert histogram_tags(tmp_path / 'train') == {
    f'weights/{name}': [3, 6, 7] for name in NAMES
  }


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_weights_and_gradients_are_the_right_ones(tmp_path, strategy):
  run = tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
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
  _, _, value = shown_runs.written(tmp_path / 'train', f'weights/{NAMES[2]}')
  assert value[0, 0] == pytest.approx(np.min(kernel.numpy()))
  assert value[:, 2].sum() == kernel.numpy().size
  # The gradient of a softmax with cross-entropy, by hand.
  error = tf.nn.softmax(task.model(x)) - tf.one_hot(y, 3)
  expected = tf.reduce_mean(error, 0).numpy()
  assert bias.shape == expected.shape
  _, _, value = shown_runs.written(tmp_path / 'train', f'gradients/{NAMES[3]}')
  assert value[0, 0] == pytest.approx(expected.min(), rel=1e-5)
  assert value[-1, 1] == pytest.approx(expected.max(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('options', [{}, {'update': tftrain.Update(ema=0.9)}])
def test_looking_changes_nothing(tmp_path, options):
  def state_after(name, actions):
    keras.utils.set_random_seed(0)
    run = tftrain.Experiment(
      lambda: small_tasks.supervised(dropout=0.5),
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
      steps=9,
      export=False,
      actions=actions,
      **options,
    ).prepare(tmp_path / name)
    run.train()
    return small_tasks.state_of(run.trainer)

  small_tasks.assert_same_bits(
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
      small_tasks.supervised,
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
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
    small_tasks.supervised(), tftrain.Arrays(small_tasks.arrays(), 8)
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
      lambda: Own(small_tasks.model(), keras.optimizers.SGD()),
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
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
    'import tests.support.recipes\n'
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

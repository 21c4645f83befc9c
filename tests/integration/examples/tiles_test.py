"""examples/tiles: image folders, written once and augmented."""

import keras
import pytest
import tensorflow as tf

from examples import tiles
from tests.support import example_runs
from tests.support import small_tasks
import tftrain


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('tiles') / 'tiles'


def test_tiles_are_written_once_and_held_out(folder):
  train = tiles.train_data(directory=str(folder))
  written = example_runs.files_of(folder)
  test = tiles.test_data(directory=str(folder))
  assert example_runs.files_of(folder) == written
  assert len(written) == 2 * (427 // 16) * (640 // 16)
  assert train.num_examples + test.num_examples == len(written)
  assert not folder.with_name('tiles.part').exists()
  assert tftrain.data.ImageFolder(folder).class_names == ['china', 'flower']


def test_a_tile_is_flipped_in_some_epochs():
  example = {'image': tf.reshape(tf.range(16 * 16), (16, 16, 1)), 'label': 1}
  found = {
    int(tiles.flipped(example, [0, n])['image'][0, 0, 0]) for n in range(20)
  }
  assert found == {0, 15}


@pytest.mark.slow
def test_tiles_learn(folder):
  task = tiles.make_task(lambda: keras.optimizers.Adam(0.005))
  example_runs.last_scalars(task, tiles.train_data(directory=str(folder)), 400)
  test = tiles.test_data(directory=str(folder))
  assert tftrain.Evaluator(task, test).evaluate()['accuracy'] > 0.85
  shown = task.artifacts(next(iter(test.dataset(0))))
  assert shown['hardest'].shape == (8, 64, 64, 1)


@pytest.mark.slow
def test_tiles_do_not_depend_on_the_replicas(folder):
  after = {}
  for name in ('one_device', 'mirrored'):
    strategy = tftrain.make_strategy(name)
    keras.utils.set_random_seed(0)
    with strategy.scope():
      task = tiles.make_task(lambda: keras.optimizers.SGD(0.1))
    data = tiles.train_data(directory=str(folder))
    tftrain.Trainer(task, data, strategy=strategy).train(3)
    after[name] = small_tasks.state_of(task)
  small_tasks.assert_close(after['one_device'], after['mirrored'], 1e-6)

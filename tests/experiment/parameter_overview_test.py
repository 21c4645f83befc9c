"""The parameter overview: parameters and graph, shown once."""

from google.protobuf import text_format
import keras
import pytest
import tensorflow as tf

from tests.support import event_files
from tests.support import shown_runs
from tests.support import small_tasks
from tests.support import tensorboard_reader
import tftrain
from tftrain.experiment import _parameter_overview


@pytest.mark.slow
def test_parameters_and_graph_are_shown_once(tmp_path):
  shown_runs.train(tmp_path)
  plugin, steps, value = shown_runs.written(tmp_path / 'train', 'parameters')
  assert (plugin, steps) == ('text', [0])
  assert value.item().decode().splitlines()[2:] == [
    '| `model/sequential/dense` | Dense | 56 | 56 |',
    '| `model/sequential/dense_1` | Dense | 27 | 27 |',
    '| **all** |  | 83 | 83 |',
  ]
  answer = tensorboard_reader.tensorboard_of(tmp_path).get(
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
  task = Two(small_tasks.model(), loss, keras.optimizers.SGD())
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

  shown_runs.train(tmp_path, make_task)
  tags = event_files.events(tmp_path / 'train').Tags()['tensors']
  assert 'parameters' in tags
  assert not event_files.events(tmp_path / 'train').Tags()['graph']


@pytest.mark.slow
def test_frozen_parameters_are_told_apart(tmp_path):
  def make_task():
    task = small_tasks.supervised()
    task.model.layers[0].trainable = False
    return task

  shown_runs.train(tmp_path, make_task)
  _, _, value = shown_runs.written(tmp_path / 'train', 'parameters')
  lines = value.item().decode().splitlines()
  assert lines[2] == '| `model/sequential/dense` | Dense | 56 | 0 |'
  assert lines[-1] == '| **all** |  | 83 | 27 |'

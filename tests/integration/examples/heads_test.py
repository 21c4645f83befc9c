"""examples/heads: two heads on a shared trunk, and a loop of its own."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples import heads
from examples import rnn
from examples import stdlib_text
from tests.support import small_tasks
import tftrain

# heads: a shared trunk


@pytest.fixture(scope='module')
def phases(tmp_path_factory):
  directory = tmp_path_factory.mktemp('heads')
  heads.run(str(directory), steps=300)
  return directory


def weights_of(model_dir):
  """Name -> value of what the models were when the run ended."""
  saved = tf.train.load_checkpoint(f'{model_dir}/checkpoints')
  names = [
    name
    for name in saved.get_variable_to_shape_map()
    if name.startswith(('trunk/', 'heads/'))
  ]
  return {name: saved.get_tensor(name) for name in names}


def scores_of(model_dir):
  """The newest of each metric, such as `eval/loop/accuracy`."""
  scores = {}
  for line in (model_dir / 'metrics.jsonl').read_text().splitlines():
    values = json.loads(line)
    source = values.pop('source')
    scores.update({f'{source}/{name}': v for name, v in values.items()})
  return scores


@pytest.mark.slow
def test_both_heads_learn_each_from_its_own_data(phases):
  scores = scores_of(phases / 'both')
  assert scores['eval/digit/accuracy'] > 0.9
  assert scores['eval/loop/accuracy'] > 0.88
  batch = next(iter(heads.train_data({'digit': 32, 'loop': 16}).dataset(0)))
  assert batch['digit'][0].shape[0] == 32
  assert batch['loop'][0].shape[0] == 16


def test_heads_train_on_disjoint_halves():
  data = heads.train_data({'digit': 719, 'loop': 719}).dataset(0)
  batch = next(iter(data))
  digit, loop = (
    {row.tobytes() for row in batch[head][0].numpy()} for head in heads.LABELS
  )
  assert len(digit) == len(loop) == 719
  assert not digit & loop


@pytest.mark.slow
def test_the_loop_head_alone_moves_in_fine_tuning(phases):
  before, after = weights_of(phases / 'both'), weights_of(phases / 'loop')
  assert before.keys() == after.keys()
  moved = {n for n in before if not np.array_equal(before[n], after[n])}
  assert moved == {n for n in before if n.startswith('heads/loop/')}
  assert len(moved) == 2
  both, loop = scores_of(phases / 'both'), scores_of(phases / 'loop')
  assert loop['eval/loop/loss'] < both['eval/loop/loss']
  assert loop['eval/digit/loss'] == both['eval/digit/loss']


def test_the_published_trunk_is_the_trunk(phases):
  task = heads.make_task(start=str(phases / 'loop'))
  images = tf.constant(heads.digits.load('test')[0][:7])
  published = tf.saved_model.load(str(phases / 'trunk'))
  features = published.signatures['serving_default'](inputs=images)['outputs']
  np.testing.assert_array_equal(features, tf.function(task.trunk)(images))
  theirs = [v.numpy() for v in published.all_variables]
  assert len(theirs) == len(task.trunk.variables)
  for one, other in zip(theirs, task.trunk.variables, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_heads_do_not_depend_on_the_replicas():
  after = {}
  for name in ('one_device', 'mirrored'):
    strategy = tftrain.make_strategy(name)
    keras.utils.set_random_seed(0)
    with strategy.scope():  # plain descent: Adam blows up rounding errors
      task = heads.make_task(optimizer=lambda: keras.optimizers.SGD(0.1))
    data = heads.train_data({'digit': 32, 'loop': 16})
    tftrain.Trainer(task, data, strategy=strategy).train(5)
    after[name] = small_tasks.state_of(task)
  small_tasks.assert_close(after['one_device'], after['mirrored'], 1e-6)


# rnn: a loop that AutoGraph compiles


def test_the_loop_computes_what_keras_does():
  model = rnn.Reader(units=8)
  lines = stdlib_text.lines('test', 20)[:5]
  ours = model(lines)
  length = (lines > 0).sum(1).max()
  layer = keras.layers.RNN(model.cell, return_sequences=True)
  theirs = model.logits(layer(model.embedding(lines[:, :length])))
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_compiled_loop_runs_as_far_as_the_longest_line():
  model = rnn.Reader(units=8)
  lines = np.zeros([2, 30], 'int32')
  lines[0, :5] = lines[1, :9] = ord('x')
  model(lines)
  call = tf.autograph.to_graph(rnn.Reader.call)
  compiled = tf.function(
    lambda lines: call(model, lines),
    input_signature=[tf.TensorSpec([None, 30], tf.int32)],
  )
  assert compiled(lines).shape == (2, 9, stdlib_text.CODES)
  assert compiled(lines[:1]).shape == (1, 5, stdlib_text.CODES)


@pytest.mark.slow
def test_the_loss_of_a_line_does_not_depend_on_the_lines_beside_it():
  task = rnn.make_task(units=8)
  lines = stdlib_text.lines('test', 60)[:6]
  together = task.loss(lines, training=False)
  for row in range(6):
    alone = task.loss(lines[row : row + 1], training=False)
    np.testing.assert_allclose(alone.values[0], together.values[row], rtol=1e-5)
    assert alone.weights[0] == np.sum(lines[row, 1:] > 0)

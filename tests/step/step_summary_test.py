"""tf.summary in a loss, a train_step or a layer."""

import json
import logging
import shutil

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.step import step_summary


class Telling(tftrain.SupervisedTask):
  """Shows the mean loss of what it is given."""

  def loss(self, batch, training):
    result = super().loss(batch, training)
    tf.summary.scalar('told/loss', tf.reduce_mean(result.values))
    return result


class TellingLayer(keras.layers.Layer):
  def call(self, x):
    tf.summary.histogram('seen', x)
    return x


def task(kind=Telling, model=None):
  return kind(
    model or small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )


def experiment(make=task, **options):
  return tftrain.Experiment(
    make,
    lambda: tftrain.Arrays(small_tasks.arrays(64), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(32, seed=1), 8, training=False),
    **{
      'steps': 6,
      'log_every': 1,
      'eval_every': 3,
      'strategy': 'one_device',
      'export': False,
      **options,
    },
  )


def told(directory, tag='told/loss'):
  """step -> value, as TensorBoard shows it."""
  found = plugin_event_accumulator.EventAccumulator(str(directory))
  found.Reload()
  if tag not in found.Tags()['tensors']:
    return {}
  return {
    event.step: tf.make_ndarray(event.tensor_proto).tolist()
    for event in found.Tensors(tag)
  }


def tags(directory):
  found = plugin_event_accumulator.EventAccumulator(str(directory))
  found.Reload()
  return found.Tags()['tensors']


def reported(model_dir, tag='loss'):
  lines = (model_dir / 'metrics.jsonl').read_text().splitlines()
  found = map(json.loads, lines)
  return {
    line['step']: line[tag] for line in found if line['source'] == 'train'
  }


def warned(caplog):
  return [
    r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING
  ]


@pytest.fixture(autouse=True)
def forgetful():
  """What is said once is said once in each test."""
  step_summary._warn.cache_clear()


@pytest.mark.parametrize('log_every', [1, 3])
def test_the_curve_is_that_of_the_reported_loss(tmp_path, log_every):
  experiment(log_every=log_every).train(tmp_path)
  values = told(tmp_path / 'train')
  assert list(values) == list(range(log_every, 7, log_every))
  if log_every == 1:
    losses = reported(tmp_path)
    np.testing.assert_allclose(
      list(values.values()), list(losses.values()), rtol=1e-6
    )
  shown = [tag for tag in tags(tmp_path / 'train') if 'told' in tag]
  assert shown == ['told/loss']


def test_an_evaluation_writes_nothing_of_the_kind(tmp_path):
  experiment().train(tmp_path)
  assert len(told(tmp_path / 'train')) == 6
  assert told(tmp_path / 'eval' / 'test') == {}


def test_a_layer_shows_what_it_sees_under_its_own_name(tmp_path):
  model = keras.Sequential(
    [keras.Input((6,)), TellingLayer(name='spy'), keras.layers.Dense(3)]
  )
  experiment(lambda: task(tftrain.SupervisedTask, model)).train(tmp_path)
  (tag,) = (tag for tag in tags(tmp_path / 'train') if 'seen' in tag)
  assert tag.endswith('/seen') and '/spy' in tag and 'while' not in tag
  assert list(told(tmp_path / 'train', tag)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_running_eagerly_it_is_the_same(tmp_path):
  experiment().train(tmp_path / 'compiled')
  tf.config.run_functions_eagerly(True)
  try:
    experiment().train(tmp_path / 'eager')
  finally:
    tf.config.run_functions_eagerly(False)
  compiled, eager = (
    told(tmp_path / kind / 'train') for kind in ('compiled', 'eager')
  )
  assert list(compiled) == list(eager) == [1, 2, 3, 4, 5, 6]
  np.testing.assert_allclose(
    list(compiled.values()), list(eager.values()), rtol=1e-5
  )


@pytest.mark.parametrize('rows', [8, 7])
def test_of_micro_batches_the_first_is_shown(tmp_path, caplog, rows):
  """With batches of seven the micro-batches are passes of a loop."""
  data = small_tasks.arrays(8 * rows)
  recipe = experiment(
    update=tftrain.Update(accumulate=4), eval_every=100, steps=2
  )
  object.__setattr__(recipe, 'train_data', lambda: tftrain.Arrays(data, rows))
  recipe.train(tmp_path)
  assert list(told(tmp_path / 'train')) == [1, 2]
  assert told(tmp_path / 'train')[1] != pytest.approx(reported(tmp_path)[1])
  assert [w for w in warned(caplog) if 'micro-batches after the first' in w]


def test_with_replicas_the_first_is_shown(tmp_path, caplog):
  experiment(strategy='mirrored').train(tmp_path)
  values = told(tmp_path / 'train')
  assert list(values) == [1, 2, 3, 4, 5, 6]
  assert values[1] != pytest.approx(reported(tmp_path)[1])
  (line,) = (w for w in warned(caplog) if 'tf.summary' in w)
  assert line == (
    'tf.summary in a step shows what the first of 2 replicas sees.'
  )


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_under_xla_nothing_is_shown_and_that_is_said(
  tmp_path, caplog, strategy
):
  recipe = experiment(update=tftrain.Update(jit='step'), strategy=strategy)
  recipe.train(tmp_path)
  assert told(tmp_path / 'train') == {}
  assert list(reported(tmp_path)) == [1, 2, 3, 4, 5, 6]
  lines = [w for w in warned(caplog) if 'Update.jit' in w]
  assert len(lines) == 1


@pytest.mark.slow
def test_a_layer_that_is_computed_again_shows_itself_once(tmp_path):
  model = keras.Sequential(
    [
      keras.Input((6,)),
      TellingLayer(name='spy'),
      keras.layers.Dense(8, name='dense'),
      keras.layers.Dense(3),
    ]
  )
  experiment(
    lambda: task(tftrain.SupervisedTask, model),
    update=tftrain.Update(remat='sequential'),
    steps=1,
  ).train(tmp_path)
  (tag,) = (tag for tag in tags(tmp_path / 'train') if 'seen' in tag)
  found = plugin_event_accumulator.EventAccumulator(str(tmp_path / 'train'))
  found.Reload()
  assert len(found.Tensors(tag)) == 1


@pytest.mark.slow
def test_an_export_holds_none_of_it(tmp_path):
  model = keras.Sequential(
    [keras.Input((6,)), TellingLayer(), keras.layers.Dense(3)]
  )
  recipe = experiment(
    lambda: task(tftrain.SupervisedTask, model), export=True, steps=1
  )
  recipe.train(tmp_path)
  graph = (tmp_path / 'export' / '1' / 'saved_model.pb').read_bytes()
  assert b'MatMul' in graph
  assert b'WriteSummary' not in graph


@pytest.mark.slow
def test_a_run_in_two_lives_shows_what_an_unbroken_one_does(tmp_path):
  experiment().train(tmp_path / 'whole')
  run = experiment(checkpoint_every=2).prepare(tmp_path / 'parts')
  run.last_step = 3
  run.train()
  run.last_step = 6
  run.train()  # the writer of the first life is closed
  whole, parts = (
    told(tmp_path / name / 'train') for name in ('whole', 'parts')
  )
  assert parts == whole and len(whole) == 6


class Poisoned(tftrain.SupervisedTask):
  """Its loss is NaN at step 5, which a run that goes back passes over."""

  def loss(self, batch, training):
    result = super().loss(batch, training)
    tf.summary.scalar('told/loss', tf.reduce_mean(result.values))
    if not training:
      return result
    step = tf.summary.experimental.get_step()
    at = step if step is not None else tf.zeros([], tf.int64)
    factor = tf.where(tf.equal(at, 5), float('nan'), 1.0)
    return tftrain.Loss(result.values * factor, result.weights)


def test_a_run_that_goes_back_writes_on(tmp_path):
  recipe = experiment(
    lambda: task(Poisoned),
    rewind=tftrain.experiment.Rewind(skip_batches=1),
    checkpoint_every=2,
    steps=8,
  )
  result = recipe.train(tmp_path)
  assert result.step == 8
  assert list(told(tmp_path / 'train'))[-2:] == [7, 8]
  assert list(told(tmp_path / 'train'))[:4] == [1, 2, 3, 4]


def test_a_lost_directory_stops_neither_summaries_nor_the_run(tmp_path, caplog):
  def lose(report):
    if report.step == 3:
      shutil.rmtree(tmp_path / 'train')

  result = experiment(actions=[lose]).train(tmp_path)
  assert result.step == 6
  assert list(reported(tmp_path)) == [1, 2, 3, 4, 5, 6]
  lines = [w for w in warned(caplog) if 'cannot be written' in w]
  (line,) = lines
  assert 'train was removed); training goes on without them' in line


def test_a_writer_of_ones_own_gets_the_steps(tmp_path):
  with tf.summary.create_file_writer(str(tmp_path)).as_default():
    trainer = tftrain.Trainer(
      task(), tftrain.Arrays(small_tasks.arrays(), 8), log_every=2
    )
    trainer.train(5)
    tftrain.Evaluator(
      trainer.task, tftrain.Arrays(small_tasks.arrays(), 8, training=False)
    ).evaluate()
  assert list(told(tmp_path)) == [2, 4]


def test_without_tf_summary_nothing_is_in_the_graph(tmp_path):
  run = experiment(small_tasks.supervised).prepare(tmp_path)
  run.train()
  assert not run.trainer.loop._writes_summaries

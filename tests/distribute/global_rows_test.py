"""gather and own_rows: the rows of the whole global batch inside a loss.

The oracle is a tape over whole batches, on one device. Run as a program,

  python -m tests.distribute.global_rows_test 4

prints as JSON what 1, 2 and 4 parts of a CPU make of it, and with `workers`
what the workers make of it that TF_CONFIG tells of.
"""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import paths
from tests.support import worker_processes
import tftrain
from tftrain import errors
from tftrain.distribute import strategy as strategy_lib

_MODULE = 'tests.distribute.global_rows_test'
_WORKERS = 'workers'
# Of 5 rows two replicas have 2 and 3; of one row, one of them has none.
_SIZES = (8, 8, 5, 1, 8)
strategies = pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
one_device_slow = pytest.mark.parametrize(
  'strategy', [pytest.param('one_device', marks=pytest.mark.slow), 'mirrored']
)


def batches(sizes=_SIZES):
  random = np.random.RandomState(0)
  return [random.normal(size=(n, 6)).astype('float32') for n in sizes]


def both_views(model, batch, training):
  """Two views of each row, `[batch, 3]`."""
  return [
    tf.math.l2_normalize(model(rows, training=training), -1)
    for rows in (batch, 0.5 * tf.abs(batch) + 0.1)
  ]


def contrasted(first, everyone, places):
  """InfoNCE (van den Oord et al. 2018) and hits, both `[batch]`."""
  logits = tf.matmul(first, everyone, transpose_b=True) / 0.2
  values = tf.nn.sparse_softmax_cross_entropy_with_logits(places, logits)
  hits = tf.argmax(logits, -1, tf.int32) == places
  return values, tf.cast(hits, tf.float32)


class Contrastive(tftrain.Task):
  """Tells the second view of each row from those of all other rows."""

  def __init__(self):
    layers = [keras.Input((6,)), keras.layers.Dense(4, 'tanh')]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    super().__init__(model, keras.optimizers.SGD(0.2, momentum=0.9))

  def loss(self, batch, training):
    first, second = both_views(self.model, batch, training)
    everyone, places = self.everyone(second), self.places(second)
    values, hits = contrasted(first, everyone, places)
    return tftrain.Loss(values, hits=hits)

  def everyone(self, rows):
    return tftrain.distribute.gather(rows)

  def places(self, rows):
    return tftrain.distribute.own_rows(rows)


class Alone(Contrastive):
  """Sees the rows of its replica only."""

  def everyone(self, rows):
    return rows

  def places(self, rows):
    return tf.range(tf.shape(rows)[0])


class Stopped(Contrastive):
  """Sees all rows, but no gradient comes back to them."""

  def everyone(self, rows):
    return tf.stop_gradient(tftrain.distribute.gather(rows))


def oracle(data, stopped=False):
  """(losses before each step, weights after all), by a tape."""
  keras.utils.set_random_seed(0)
  task = Contrastive()
  variables = task.model.trainable_variables
  losses = []
  for batch in data:
    with tf.GradientTape() as tape:
      first, second = both_views(task.model, batch, True)
      places = tf.range(len(batch))
      everyone = tf.stop_gradient(second) if stopped else second
      loss = tf.reduce_mean(contrasted(first, everyone, places)[0])
    losses.append(float(loss))
    task.optimizer.apply(tape.gradient(loss, variables), variables)
  return losses, flat(task)


def flat(task):
  return np.concatenate([np.ravel(w) for w in task.model.get_weights()])


def trainer(make, data, strategy='one_device', log_every=1, **options):
  keras.utils.set_random_seed(0)
  if isinstance(strategy, str):
    strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make()
  pipeline = tftrain.data.DatasetPipeline(data, repeat=False)
  update = tftrain.Update(**options)
  return tftrain.Trainer(
    task, pipeline, strategy=strategy, update=update, log_every=log_every
  )


def trained(make, data, strategy='one_device', **options):
  """(losses of all steps, weights after them)."""
  run = trainer(make, data, strategy, **options)
  losses = [report.scalars['loss'] for report in run.steps(len(data))]
  return losses, flat(run.task)


def assert_equal(found, expected):
  losses, weights = found
  np.testing.assert_allclose(losses, expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(weights, expected[1], rtol=1e-5, atol=1e-6)


@one_device_slow
def test_training_equals_a_tape_over_whole_batches(strategy):
  """Also where a replica has fewer rows than another, or none."""
  assert_equal(trained(Contrastive, batches(), strategy), oracle(batches()))


@one_device_slow
def test_an_evaluation_equals_whole_batches(strategy):
  found = evaluated(tftrain.make_strategy(strategy))
  assert found == pytest.approx(evaluated_by_hand(), rel=1e-5)


def evaluated(strategy):
  keras.utils.set_random_seed(0)
  with strategy.scope():
    task = Contrastive()
  return tftrain.Evaluator(task, batches(), strategy=strategy).evaluate()


def evaluated_by_hand():
  keras.utils.set_random_seed(0)
  task = Contrastive()
  sums = np.zeros(2)
  for batch in batches():
    views = both_views(task.model, batch, False)
    sums += np.sum(contrasted(*views, tf.range(len(batch))), axis=1)
  loss, hits = sums / sum(_SIZES)
  return {'loss': loss, 'hits': hits}


@pytest.mark.slow
def test_without_gather_two_replicas_make_something_else():
  """So the tests above can fail."""
  data = batches([8, 8, 8])
  losses, weights = oracle(data)
  assert_equal(trained(Alone, data), (losses, weights))
  alone, other = trained(Alone, data, 'mirrored')
  assert np.abs(np.subtract(alone, losses)).min() > 0.1
  assert np.abs(weights - other).max() > 1e-2


@pytest.mark.slow
def test_gradients_come_back_to_the_rows_of_other_replicas():
  data = batches([8, 5])
  losses, weights = oracle(data)
  stopped = oracle(data, stopped=True)
  assert np.abs(weights - stopped[1]).max() > 1e-2
  assert_equal(trained(Stopped, data, 'mirrored'), stopped)
  assert_equal(trained(Contrastive, data, 'mirrored'), (losses, weights))


class Collecting(Contrastive):
  """The gradients of a batch, kept for a look at them."""

  def __init__(self):
    super().__init__()
    self.seen = [tf.Variable(tf.zeros(w.shape), trainable=False)
                 for w in self.model.get_weights()]  # fmt: skip

  def train_step(self, batch):
    found = self.gradients(self.loss, batch)
    for variable, value in zip(self.seen, found.values, strict=True):
      variable.assign(value)
    return self.apply(found)


@pytest.mark.parametrize('rows', [8, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_are_those_of_a_tape(rows):
  [batch] = batches([rows])
  run = trainer(Collecting, [batch], 'mirrored')
  before = run.task.model.get_weights()
  run.train(1)
  keras.utils.set_random_seed(0)
  model = Contrastive().model
  model.set_weights(before)
  with tf.GradientTape() as tape:
    views = both_views(model, batch, True)
    loss = tf.reduce_mean(contrasted(*views, tf.range(rows))[0])
  expected = tape.gradient(loss, model.trainable_variables)
  for variable, gradient in zip(run.task.seen, expected, strict=True):
    np.testing.assert_allclose(variable.numpy(), gradient, rtol=0, atol=1e-6)


class Nested(tftrain.Task):
  """Each row brings its number; 1.0 where all are as they must be."""

  def loss(self, batch, training):
    x, numbers = batch
    outputs = self.model(x, training=training)
    nest = {
      'n': (numbers, tf.cast(numbers, tf.float16)),
      'cube': [tf.reshape(tf.repeat(numbers, 6), [-1, 2, 3])],
    }
    found = tftrain.distribute.gather(nest)
    tf.nest.assert_same_structure(nest, found)
    everyone, half = found['n']
    wanted = tf.range(tf.cast(tf.shape(everyone)[0], tf.int64))
    places = tftrain.distribute.own_rows(nest)
    assert places.dtype == tf.int32
    checks = {
      'order': everyone == wanted,
      'half': half == tf.cast(wanted, tf.float16),
      'cube': found['cube'][0] == wanted[:, tf.newaxis, tf.newaxis],
      'places': tf.cast(places, tf.int64) == numbers,
    }
    metrics = {
      name: tf.repeat(tf.cast(tf.reduce_all(right), tf.float32), len(x))
      for name, right in checks.items()
    }
    metrics['rows'] = tf.repeat(tf.cast(len(wanted), tf.float32), len(x))
    return tftrain.Loss(outputs[:, 0] ** 2, **metrics)


@pytest.mark.slow
@one_device_slow
def test_a_nest_of_numbers_comes_in_the_order_of_the_batch(strategy):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    layers = [keras.Input((6,)), keras.layers.Dense(1)]
    task = Nested(keras.Sequential(layers), keras.optimizers.SGD(0.1))
  for rows in (8, 5, 1):
    data = [(batch, np.arange(rows)) for batch in batches([rows])]
    found = tftrain.Evaluator(task, data, strategy=strategy).evaluate()
    del found['loss']
    assert found.pop('rows') == rows
    assert found.keys() == {'order', 'half', 'cube', 'places'}
    assert set(found.values()) == {1.0}


# One pass for two optimizers, and a step that is not always taken.


class Pairs(Contrastive):
  """Each layer has an optimizer; every step but the third is taken."""

  def __init__(self):
    super().__init__()
    self.other = keras.optimizers.SGD(0.2, momentum=0.9)
    self.calls = keras.Variable(0, trainable=False, dtype='int64')

  def train_step(self, batch):
    self.calls.assign_add(1)
    first, second = self.model.layers
    pairs = [(self.optimizer, first), (self.other, second)]
    return self.minimize(self.loss, batch, pairs=pairs, when=self.calls != 3)


@pytest.mark.slow
@strategies
def test_gather_where_a_step_has_two_optimizers_and_a_condition(strategy):
  data = batches()
  run = trainer(Pairs, data, strategy)
  run.train(len(data))
  _, weights = oracle(data[:2] + data[3:])
  np.testing.assert_allclose(flat(run.task), weights, rtol=1e-5, atol=1e-6)


# What is refused.


@strategies
@pytest.mark.parametrize('name', ['gather', 'own_rows'])
def test_accumulation_is_refused_before_the_first_step(strategy, name):
  class Asks(Alone):
    def places(self, rows):
      getattr(tftrain.distribute, name)(rows)
      return super().places(rows)

  with error_lines.refused(
    errors.TaskError, f'{name}()', 'Update.accumulate=2', 'accumulate=1'
  ):
    trainer(Asks, batches(), strategy, accumulate=2)


@pytest.mark.parametrize('name', ['gather', 'own_rows'])
def test_outside_a_loss_it_says_where_to_call_it(name):
  function = getattr(tftrain.distribute, name)
  with tftrain.make_strategy('mirrored').scope():
    with error_lines.refused(errors.TaskError, f'{name}()', 'inside loss('):
      function(tf.ones([2, 3]))

  class Outside(Contrastive):
    def train_step(self, batch):
      function(batch)
      return super().train_step(batch)

  with error_lines.refused(errors.TaskError, f'{name}()', 'inside loss('):
    trainer(Outside, batches(), 'mirrored')


@pytest.mark.slow
def test_a_batch_that_is_larger_than_the_first_is_refused():
  run = trainer(Contrastive, batches([4, 8]), 'mirrored')
  with error_lines.refused(errors.InputError, 'step 2', 'than the first'):
    run.train(2)


@pytest.mark.slow
def test_xla_on_one_replica_and_not_on_two():
  data = batches([8, 8])
  assert_equal(trained(Contrastive, data, jit='step'), oracle(data))
  with error_lines.refused(errors.Error, 'jit'):
    trained(Contrastive, data, 'mirrored', jit='step')


# More replicas than the tests have, and workers.


@pytest.mark.slow
def test_four_replicas_are_one():
  ended = subprocess.run(
    _command('4'), stdout=subprocess.PIPE, text=True, cwd=paths.ROOT,
    timeout=240,
  )  # fmt: skip
  assert ended.returncode == 0
  found = json.loads(ended.stdout)
  assert found.keys() == {'1', '2', '4'}
  for run in found.values():
    assert_as_one_device(run)


@pytest.mark.slow
def test_two_workers_are_one_device():
  chief, other = worker_processes.printed_by_two(_MODULE, _WORKERS)
  assert_as_one_device(chief)
  assert other['weights'] == chief['weights']


def _command(argument):
  return [sys.executable, '-m', _MODULE, argument]


def assert_as_one_device(found):
  assert_equal((found['losses'], found['weights']), oracle(batches()))
  expected = evaluated_by_hand()
  assert found['evaluation'] == pytest.approx(expected, rel=1e-5)


def of(strategy):
  losses, _ = trained(Contrastive, batches(), strategy)
  at_once = trainer(Contrastive, batches(), strategy, log_every=100)
  at_once.train(len(_SIZES))
  return {
    'losses': losses,
    'weights': flat(at_once.task).tolist(),
    'evaluation': evaluated(strategy),
  }


def main(argument):
  if argument == _WORKERS:
    found = of(tftrain.make_strategy('multi_worker_mirrored'))
  else:
    strategy_lib.set_local_devices(int(argument))
    make = tftrain.make_strategy
    found = {1: of(make('one_device'))}
    for count in (2, 4):
      found[count] = of(make('mirrored', replicas=count))
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])

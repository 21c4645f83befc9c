"""Padding is told apart from rows of weight 0: padded equals unpadded.

Keras's `sum_over_batch_size` divides by the number of rows, those of weight 0
included; rows that only fill up a batch must not be among them.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain

_ROWS, _BATCH = 21, 8  # the last batch has 5 rows and 3 that fill it up
strategies = pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
mirrored_slow = pytest.mark.parametrize(
  'strategy', ['one_device', pytest.param('mirrored', marks=pytest.mark.slow)]
)


def arrays(dtype='float32'):
  """(x, y, weights): four of five weights of the last batch are 0."""
  x, y, _ = small_tasks.regression(_ROWS)
  weights = np.random.RandomState(2).randint(0, 3, size=_ROWS)
  weights[-5:] = [0, 2, 0, 0, 0]
  assert (weights[:-5] == 0).any()
  return x, y[:, np.newaxis], weights.astype(dtype)


def examples(values, remainder, **options):
  return tftrain.data.Examples(
    tftrain.data.InMemory(values),
    _BATCH,
    training=False,
    remainder=remainder,
    **options,
  )


class FromDictionaries(tftrain.SupervisedTask):
  """Takes `x`, `y` and `weights` out of dictionaries."""

  def loss(self, batch, training):
    batch = batch['x'], batch['y'], batch['weights']
    return super().loss(batch, training)


def made(loss, kind=tftrain.SupervisedTask, **options):
  keras.utils.set_random_seed(0)
  model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
  return kind(model, loss, keras.optimizers.SGD(0.05, momentum=0.9), **options)


def evaluated(data, strategy, loss='mse', **options):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = made(loss, **options)
  return tftrain.Evaluator(task, data, strategy=strategy).evaluate()


def trained(data, strategy, loss, **options):
  """(losses of all steps, the weights after them)."""
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = made(loss)
  run = tftrain.Trainer(
    task, data, strategy=strategy, log_every=1,
    update=tftrain.Update(**options),
  )  # fmt: skip
  losses = [report.scalars['loss'] for report in run.steps(3)]
  return losses, task.model.get_weights()


def by_hand(dtype='float32'):
  """The squared error, weighted, over the number of rows."""
  x, y, weights = arrays(dtype)
  errors = (made('mse').model(x).numpy() - y)[:, 0] ** 2
  return (errors * weights).sum() / _ROWS


@mirrored_slow
@pytest.mark.parametrize(
  'dtype',
  [
    'float32',
    *(pytest.param(d, marks=pytest.mark.slow)
      for d in ('int64', 'int32', 'float64', 'float16')),
  ],
)  # fmt: skip
def test_an_evaluation_divides_by_the_rows_that_are_no_padding(strategy, dtype):
  expected = by_hand(dtype)
  for remainder in ('keep', 'pad'):
    found = evaluated(examples(arrays(dtype), remainder), strategy)
    assert found['loss'] == pytest.approx(expected, rel=1e-5), remainder


def dictionary(**given):
  x, y, weights = arrays()
  return {'x': x, 'y': y, 'weights': weights, **given}


@mirrored_slow
def test_dictionaries_with_weights(strategy):
  data = examples(dictionary(), 'pad')
  found = evaluated(data, strategy, kind=FromDictionaries)
  assert found['loss'] == pytest.approx(by_hand(), rel=1e-5)


@pytest.mark.slow
@strategies
def test_data_without_weights(strategy):
  x, y, _ = arrays()
  error = (made('mse').model(x).numpy() - y) ** 2
  expected = pytest.approx(error.mean(), rel=1e-5)
  pairs = examples((x, y), 'pad')
  assert evaluated(pairs, strategy)['loss'] == expected
  names = examples({'x': x, 'y': y}, 'pad')
  found = evaluated(names, strategy, kind=FromDictionaries)
  assert found['loss'] == expected


_REDUCTIONS = ['sum_over_batch_size', 'sum', 'none', 'mean_with_sample_weight']


@strategies
@pytest.mark.parametrize(
  ('reduction', 'options'),
  [
    ('sum_over_batch_size', {}),
    *(pytest.param(reduction, {}, marks=pytest.mark.slow)
      for reduction in _REDUCTIONS[1:]),
    *(pytest.param(reduction, options, marks=pytest.mark.slow)
      for reduction in _REDUCTIONS
      for options in ({'accumulate': 2}, {'jit': 'step'})),
  ],
)  # fmt: skip
def test_training_on_padded_batches_equals_keras(strategy, reduction, options):
  """Keras sees the batches without padding: 8, 8 and 5 rows."""
  loss = lambda: keras.losses.MeanSquaredError(reduction=reduction)
  losses, expected = oracle(loss(), reduction)
  for remainder in ('keep', 'pad'):
    data = examples(arrays(), remainder)
    found, weights = trained(data, strategy, loss(), **options)
    if reduction != 'none':  # reported as a mean
      np.testing.assert_allclose(found, losses, rtol=1e-5)
    for one, other in zip(weights, expected, strict=True):
      np.testing.assert_allclose(
        one, other, rtol=0, atol=1e-6, err_msg=remainder
      )


def oracle(loss, reduction):
  task = made(loss)
  variables = task.model.trainable_variables
  losses = []
  for start in range(0, _ROWS, _BATCH):
    x, y, weights = (a[start : start + _BATCH] for a in arrays())
    with tf.GradientTape() as tape:
      value = tf.reduce_sum(loss(y, task.model(x), sample_weight=weights))
    task.optimizer.apply(tape.gradient(value, variables), variables)
    losses.append(float(value))
  return losses, task.model.get_weights()


@pytest.mark.slow
@strategies
@pytest.mark.parametrize('reduction', _REDUCTIONS)
def test_evaluations_of_all_reductions(strategy, reduction):
  loss = lambda: keras.losses.MeanSquaredError(reduction=reduction)
  one, other = (
    evaluated(examples(arrays(), remainder), strategy, loss())
    for remainder in ('keep', 'pad')
  )
  assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_blocks_of_steps_in_xla_take_padded_batches():
  loss = lambda: keras.losses.MeanSquaredError(reduction='sum_over_batch_size')
  losses, expected = oracle(loss(), 'sum_over_batch_size')
  data = examples(arrays(), 'pad')
  found, weights = trained(data, 'one_device', loss(), jit='block')
  np.testing.assert_allclose(found, losses, rtol=1e-5)
  for one, other in zip(weights, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


# Weights of other shapes: for each element, and for each output.


def sequences():
  """`[rows, 4, 3]` with labels and weights for each of the four."""
  random = np.random.RandomState(3)
  x = random.normal(size=(_ROWS, 4, 3)).astype('float32')
  y = random.normal(size=(_ROWS, 4)).astype('float32')
  weights = random.randint(0, 3, size=(_ROWS, 4)).astype('int64')
  weights[-2] = 0
  return x, y, weights


class Squeezed(tftrain.SupervisedTask):
  """Weighs each element: the loss of Keras sees `[batch, 4, 1]`."""

  def loss(self, batch, training):
    x, y, weights = batch
    return super().loss((x, y[..., tf.newaxis], weights), training)


@mirrored_slow
def test_weights_of_each_element(strategy):
  keras.utils.set_random_seed(0)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    layers = [keras.Input((4, 3)), keras.layers.Dense(1)]
    task = Squeezed(keras.Sequential(layers), 'mse', 'sgd')
  x, y, weights = sequences()
  errors = (task.model(x).numpy()[..., 0] - y) ** 2
  expected = (errors * weights).sum() / (4 * _ROWS)
  for remainder in ('keep', 'pad'):
    data = examples((x, y, weights), remainder)
    found = tftrain.Evaluator(task, data, strategy=strategy).evaluate()['loss']
    assert found == pytest.approx(expected, rel=1e-5), remainder


@pytest.mark.slow
@strategies
def test_weights_of_each_output(strategy):
  keras.utils.set_random_seed(0)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    inputs = keras.Input((3,))
    outputs = {n: keras.layers.Dense(1, name=n)(inputs) for n in 'ab'}
    model = keras.Model(inputs, outputs)
    task = tftrain.SupervisedTask(model, {'a': 'mse', 'b': 'mae'}, 'sgd')
  x, y, weights = arrays()
  other = weights[::-1].copy()
  made = {name: value.numpy()[:, 0] for name, value in model(x).items()}
  squared = (made['a'] - y[:, 0]) ** 2
  absolute = abs(made['b'] - y[:, 0])
  losses = [(squared * weights).mean(), (absolute * other).mean()]
  expected = {'loss': sum(losses), 'a_loss': losses[0], 'b_loss': losses[1]}
  labels, given = {'a': y, 'b': y}, {'a': weights, 'b': other}
  for remainder in ('keep', 'pad'):
    data = examples((x, labels, given), remainder)
    found = tftrain.Evaluator(task, data, strategy=strategy).evaluate()
    assert found == pytest.approx(expected, rel=1e-5), remainder


# What sees all examples at once.


@pytest.mark.parametrize('filtered', [False, True])
def test_host_metrics_have_each_row_that_is_no_padding(filtered):
  x, y, _ = arrays()
  task = made(
    'mse',
    host_metrics={
      'rows': lambda y, _: float(len(y)),
      'sum': lambda y, _: float(y.sum()),
    },
  )
  options = {'filter': lambda row: row[0][0] > -99.0} if filtered else {}
  data = examples(arrays(), 'pad', **options)
  found = tftrain.Evaluator(task, data).evaluate()
  assert found['rows'] == _ROWS
  assert found['sum'] == pytest.approx(y.sum(), rel=1e-5)

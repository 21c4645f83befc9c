"""SupervisedTask beside Keras's own fit: outputs, masks, weights, names."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors

layers, losses, keras_metrics = keras.layers, keras.losses, keras.metrics
_STEPS = 6
_WAYS = {
  'plain': ('one_device', {}),
  'accumulate': ('one_device', {'accumulate': 2}),
  'two replicas': ('mirrored', {}),
}
_QUICK = ('plain', 'two replicas')
ways = pytest.mark.parametrize(
  ('strategy', 'options'),
  [
    pytest.param(*way, marks=[] if name in _QUICK else pytest.mark.slow)
    for name, way in _WAYS.items()
  ],
  ids=_WAYS.keys(),
)


def features(rows=48):
  return np.random.RandomState(0).normal(size=(rows, 4)).astype('float32')


def several_labels(x):
  total = x.sum(1)
  return {
    'priority': (total > 0)[:, None].astype('float32'),
    'dept': np.digitize(total, [-1, 1]).astype('int64'),
    'score': total[:, None],
  }


def several_outputs():
  keras.utils.set_random_seed(1)
  inputs = keras.Input((4,))
  hidden = layers.Dense(8, 'tanh')(inputs)
  return keras.Model(
    inputs,
    {
      'priority': layers.Dense(1, name='priority')(hidden),
      'dept': layers.Dense(3, name='dept')(hidden),
      'score': layers.Dense(1, name='score')(hidden),
    },
  )


def several_losses():
  return {
    'priority': losses.BinaryCrossentropy(from_logits=True),
    'dept': losses.SparseCategoricalCrossentropy(from_logits=True),
    'score': 'mse',
  }


def scorer(*first):
  keras.utils.set_random_seed(1)
  return keras.Sequential(
    [keras.Input((4,)), *first, layers.Dense(8, 'tanh'), layers.Dense(1)]
  )


_FACTORS = {'priority': 1.0, 'dept': 0.5, 'score': 0.2}


def tagger(mask_zero=True):
  keras.utils.set_random_seed(1)
  return keras.Sequential(
    [
      keras.Input((None,), dtype='int32'),
      layers.Embedding(7, 5, mask_zero=mask_zero),
      layers.GRU(4, return_sequences=True),
      layers.Dense(3),
    ]
  )


def tokens(rows=48, length=6):
  random = np.random.RandomState(0)
  ids = random.randint(1, 7, (rows, length)).astype('int32')
  for row, size in enumerate(random.randint(1, length + 1, rows)):
    ids[row, size:] = 0
  return ids, (ids % 3).astype('int64')


def optimizer():
  """Not Adam: Keras's squares the gradients of a row looked up twice apart."""
  return keras.optimizers.SGD(0.3, momentum=0.9)


def fitted(model, loss, data, **compiled):
  model.compile(optimizer(), loss, **compiled)
  x, y, *weights = data
  model.fit(
    x, y, 8, 1, shuffle=False, verbose=0,
    sample_weight=weights[0] if weights else None,
  )  # fmt: skip
  return model.get_weights()


def trained(make, loss, data, strategy='one_device', options=None, **others):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = tftrain.SupervisedTask(make(), loss, optimizer(), **others)
  trainer = tftrain.Trainer(
    task,
    tftrain.Arrays(data, 8, training=False),
    strategy=strategy,
    log_every=1,
    update=tftrain.Update(**(options or {})),
  )
  return task, trainer.train(_STEPS).scalars


def assert_same_weights(task, expected, tolerance=2e-6):
  for one, other in zip(task.model.get_weights(), expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@ways
def test_several_outputs_equal_fit(strategy, options):
  x = features()
  data = x, several_labels(x)
  expected = fitted(
    several_outputs(), several_losses(), data, loss_weights=_FACTORS
  )
  task, scalars = trained(
    several_outputs, several_losses(), data, strategy, options,
    loss_weights=_FACTORS,
    metrics={
      'priority': [
        keras_metrics.AUC(from_logits=True, name='auc'),
        'binary_accuracy',
      ],
      'dept': 'accuracy',
    },
  )  # fmt: skip
  assert_same_weights(task, expected)
  names = ['priority_loss', 'dept_loss', 'score_loss', 'dept_accuracy',
           'priority_auc', 'priority_binary_accuracy']  # fmt: skip
  assert set(names) <= set(scalars)
  total = sum(_FACTORS[name] * scalars[f'{name}_loss'] for name in _FACTORS)
  np.testing.assert_allclose(scalars['loss'], total, rtol=1e-6)


def test_lists_of_outputs_are_those_of_dictionaries():
  x = features()
  y = several_labels(x)
  names = ['priority', 'dept', 'score']

  def listed():
    model = several_outputs()
    return keras.Model(model.inputs, [model.output[name] for name in names])

  one, _ = trained(several_outputs, several_losses(), (x, y))
  given = [several_losses()[name] for name in names]
  two, scalars = trained(listed, given, (x, [y[name] for name in names]))
  for name in names:
    first, second = (task.model.get_layer(name).kernel for task in (one, two))
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)
  assert f'{names[1]}_loss' in scalars


@ways
def test_masked_sequences_equal_fit(strategy, options):
  """Keras divides by the number of tokens that are not masked."""
  ids, tags = tokens()
  loss = losses.SparseCategoricalCrossentropy(from_logits=True)
  expected = fitted(tagger(), loss, (ids, tags))
  metrics = {
    'accuracy': keras_metrics.SparseCategoricalAccuracy(),
    'own': keras_metrics.sparse_categorical_accuracy,
  }
  task, scalars = trained(
    tagger, loss, (ids, tags), strategy, options, metrics=metrics
  )
  assert_same_weights(task, expected)
  np.testing.assert_allclose(scalars['own'], scalars['accuracy'], rtol=1e-6)


def test_an_evaluation_counts_tokens_once():
  ids, tags = tokens(22)
  ids[:8, 2:] = 0  # the batches have other numbers of tokens
  loss = losses.SparseCategoricalCrossentropy(from_logits=True)
  task = tftrain.SupervisedTask(tagger(), loss, keras.optimizers.SGD(0.1))
  data = tftrain.Arrays((ids, tags), 8, training=False)
  found = tftrain.Evaluator(task, data).evaluate()['loss']
  each = loss.call(tags, task.model(ids)).numpy()
  expected = each[ids != 0].mean(dtype='float64')
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_an_ignored_class_equals_fit():
  ids, tags = tokens()
  make = lambda: losses.SparseCategoricalCrossentropy(
    from_logits=True, ignore_class=1
  )
  plain = lambda: tagger(mask_zero=False)
  expected = fitted(plain(), make(), (ids, tags))
  task, _ = trained(plain, make(), (ids, tags))
  assert_same_weights(task, expected)


@pytest.mark.slow
def test_masks_and_an_ignored_class_on_replicas_with_accumulation():
  ids, tags = tokens()
  make = lambda: losses.SparseCategoricalCrossentropy(
    from_logits=True, ignore_class=1
  )
  expected = fitted(tagger(), make(), (ids, tags))
  for strategy in ('one_device', 'mirrored'):
    task, _ = trained(tagger, make(), (ids, tags), strategy, {'accumulate': 2})
    assert_same_weights(task, expected)


def test_weights_per_token_are_masks():
  ids, tags = tokens()
  """With the reduction that divides by the sum of the weights."""
  plain = lambda: tagger(mask_zero=False)
  loss = losses.SparseCategoricalCrossentropy(
    from_logits=True, reduction='mean_with_sample_weight'
  )
  weights = (ids != 0).astype('float32')
  data = tftrain.Arrays((ids, tags, weights), 8, training=False)
  task = tftrain.SupervisedTask(plain(), loss, keras.optimizers.SGD(0.1))
  found = tftrain.Evaluator(task, data).evaluate()['loss']
  each = loss.call(tags, task.model(ids)).numpy()
  expected = each[ids != 0].mean(dtype='float64')
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_names_of_keras_are_taken():
  x = features()
  y = x.sum(1, keepdims=True)
  net = lambda: keras.Sequential([keras.Input((4,)), layers.Dense(1)])

  def make():
    keras.utils.set_random_seed(1)
    return net()

  expected = fitted(make(), 'mse', (x, y))
  task = tftrain.SupervisedTask(make(), 'mse', 'sgd', ['mae'])
  task.optimizer.learning_rate = 0.3
  task.optimizer.momentum = 0.9
  data = tftrain.Arrays((x, y), 8, training=False)
  scalars = tftrain.Trainer(task, data).train(_STEPS).scalars
  assert_same_weights(task, expected)
  assert set(scalars) >= {'loss', 'mae'}


@ways
@pytest.mark.parametrize('factor', [0.25, [0.25]])
def test_the_factor_of_one_loss_equals_fit(strategy, options, factor):
  x = features(44)
  y = several_labels(x)['score']
  expected = fitted(scorer(), 'mse', (x, y), loss_weights=factor)
  task, _ = trained(
    scorer, 'mse', (x, y), strategy, options, loss_weights=factor
  )
  assert_same_weights(task, expected)


class AddsRows(layers.Layer):
  """Adds a vector, the squares of each row, to the loss."""

  def call(self, inputs):
    self.add_loss(tf.reduce_sum(inputs**2, axis=1))
    return inputs


@ways
def test_a_sum_is_reported_per_step(strategy, options):
  """Keras counts a ragged batch by its rows; a sum has no rows."""
  x = features(44)
  y = several_labels(x)['score']
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    model = scorer(AddsRows())
    task = tftrain.SupervisedTask(
      model, losses.MeanSquaredError('sum'), keras.optimizers.SGD(0.0)
    )
  trainer = tftrain.Trainer(
    task,
    tftrain.Arrays((x, y), 8, training=False),
    strategy=strategy,
    log_every=_STEPS,
    update=tftrain.Update(**options),
  )
  found = trainer.train(_STEPS).scalars['loss']
  total = ((model(x) - y) ** 2).numpy().sum() + (x**2).sum(dtype='float64')
  np.testing.assert_allclose(found, total / _STEPS, rtol=1e-6)


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ({'loss': 'msee'}, "loss = 'msee' is no loss of Keras"),
    ({'loss': 3}, 'loss = 3 cannot be called'),
    ({'metrics': ['accurate']}, "metric 'accurate' is no metric of Keras"),
    ({'metrics': keras_metrics.AUC()}, 'no dictionary or list'),
    ({'metrics': {'a': 3}}, "metric 'a' is a int"),
    ({'loss_weights': [0.5, 0.5]}, 'loss_weights has 2 numbers for one loss'),
    ({'loss': ['mse', 'mae']}, '2 losses for the one output'),
    ({'metrics': ['mae', 'mae']}, "two metrics are called 'mae'"),
    (
      {'loss': {'a': 'mse'}, 'metrics': {'b': 'mae'}},
      "metrics has 'b', which is no output with a loss; there are 'a'",
    ),
  ],
)
def test_what_cannot_be_meant_is_refused(arguments, said):
  arguments = {'loss': 'mse', 'optimizer': 'sgd', **arguments}
  with pytest.raises(errors.TaskError) as info:
    tftrain.SupervisedTask(small_tasks.model(), **arguments)
  assert said in str(info.value) and '\n' not in str(info.value)


def test_an_output_without_labels_is_named():
  x = features()
  y = several_labels(x)
  del y['dept']
  make = lambda: tftrain.SupervisedTask(
    several_outputs(), several_losses(), keras.optimizers.SGD(0.1)
  )
  with error_lines.refused(errors.TaskError, "output 'dept'", 'labels'):
    small_tasks.trainer(tftrain.Arrays((x, y), 8), make)


# NaN in rows that do not count.


def _log_loss(labels, predictions):
  difference = tf.math.log(labels) - tf.math.log(tf.abs(predictions))
  return tf.reduce_mean(difference**2, -1)


def _positive():
  keras.utils.set_random_seed(0)
  dense = layers.Dense(1, use_bias=False)
  return keras.Sequential([keras.Input((3,)), dense])


@ways
@pytest.mark.parametrize('where', ['features', 'labels', 'loss'])
def test_rows_of_weight_zero_do_no_harm(strategy, options, where):
  x = 1 + np.random.RandomState(0).uniform(size=(8, 3)).astype('float32')
  y = x.sum(1, keepdims=True)
  weights = np.ones(8, 'float32')
  weights[5:] = 0
  bad_x, bad_y = x.copy(), y.copy()
  if where == 'features':
    bad_x[5:] = np.nan
  bad_y[5:] = {'features': 1.0, 'labels': np.nan, 'loss': -1.0}[where]
  found = [
    trained(_positive, _log_loss, data, strategy, options)
    for data in ((x, y, weights), (bad_x, bad_y, weights))
  ]
  (clean, clean_scalars), (dirty, dirty_scalars) = found
  assert_same_weights(dirty, clean.model.get_weights(), 0.0)
  assert clean_scalars['loss'] == dirty_scalars['loss']
  assert np.isfinite(dirty_scalars['loss'])


def test_padding_rows_are_copies_and_harmless():
  x = 1 + np.random.RandomState(0).uniform(size=(10, 3)).astype('float32')
  y = x.sum(1, keepdims=True)
  task = tftrain.SupervisedTask(_positive(), _log_loss, 'sgd')
  plain = tftrain.Evaluator(task, [(x, y)]).evaluate()['loss']
  data = tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'y': y}), 4, training=False,
    remainder='pad', select=('x', 'y'),
  )  # fmt: skip
  *_, (last, labels, weights) = data.peek(3)
  np.testing.assert_array_equal(last[2:], np.stack([last[0]] * 2))
  np.testing.assert_array_equal(labels[2:], np.stack([labels[0]] * 2))
  assert weights.tolist() == [1.0, 1.0, 0.0, 0.0]
  padded = tftrain.Evaluator(task, data).evaluate()['loss']
  np.testing.assert_allclose(padded, plain, rtol=1e-6)


def _weighted_classes(weights, **others):
  keras.utils.set_random_seed(0)
  x = features()
  labels = (x.sum(1) > 0).astype('int64')
  return tftrain.SupervisedTask(
    keras.Sequential([keras.Input((4,)), layers.Dense(2)]),
    losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer(),
    class_weight=weights,
    **others,
  ), (x, labels)


def test_class_weight_beside_weights_is_refused():
  task, (x, labels) = _weighted_classes({1: 3.0})
  data = tftrain.Arrays((x, labels, np.ones(48, 'float32')), 8)
  with error_lines.refused(errors.TaskError, 'class_weight beside weights'):
    tftrain.Trainer(task, data)


def test_class_weight_needs_one_output():
  with error_lines.refused(errors.TaskError, 'class_weight needs a model of'):
    tftrain.SupervisedTask(
      several_outputs(), several_losses(), class_weight={0: 2.0}
    )


def test_class_weight_counts_in_training_and_not_in_evaluation():
  weighted, (x, labels) = _weighted_classes({1: 3.0})
  plain, _ = _weighted_classes(None)
  evaluated = [
    tftrain.Evaluator(task, [(x, labels)]).evaluate()['loss']
    for task in (weighted, plain)
  ]
  assert evaluated[0] == evaluated[1]


def test_a_scalar_beside_weights_is_refused_by_name():
  def mean_error(labels, predictions):
    return tf.reduce_mean((labels - predictions) ** 2)

  x = features()
  data = x, x.sum(1, keepdims=True), np.ones(48, 'float32')
  net = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
  task = tftrain.SupervisedTask(net, mean_error, 'sgd')
  with error_lines.refused(errors.TaskError, 'loss mean_error returned a'):
    tftrain.Trainer(task, tftrain.Arrays(data, 8))


def test_a_function_gets_labels_and_outputs_of_one_rank():
  """Keras expands labels [batch] beside [batch, 1] predictions."""
  x = features()

  def squared(labels, predictions):
    return (labels - predictions) ** 2

  net = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
  task = tftrain.SupervisedTask(net, squared)
  found = tftrain.Evaluator(task, [(x, x.sum(1))]).evaluate()['loss']
  expected = ((x.sum(1) - net(x).numpy()[:, 0]) ** 2).mean(dtype='float64')
  np.testing.assert_allclose(found, expected, rtol=1e-6)

"""The loss contract: terms with denominators of their own, against float64.

The oracle computes `sum_k c_k N_k / D_k` of a whole global batch at once, in
float64, with one tape. One replica, two replicas, accumulation and a ragged
last batch must give the same loss and the same weights.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors

_RATE = 0.1
_WAYS = {
  'plain': ('one_device', {}),
  'accumulate': ('one_device', {'accumulate': 2}),
  'two replicas': ('mirrored', {}),
  'two replicas, accumulate': ('mirrored', {'accumulate': 2}),
  'loss scale': ('one_device', {'loss_scale': 64.0}),
  'two replicas, loss scale': ('mirrored', {'loss_scale': 64.0}),
  'xla': ('one_device', {'jit': 'step'}),
  'xla on 2 replicas': ('mirrored', {'jit': 'step'}),
}
_QUICK = ('plain', 'two replicas, accumulate')
ways = pytest.mark.parametrize(
  ('strategy', 'options'),
  [
    pytest.param(*way, marks=[] if name in _QUICK else pytest.mark.slow)
    for name, way in _WAYS.items()
  ],
  ids=_WAYS.keys(),
)


def batches(seed=0):
  """Two batches of 8 rows of 5 tokens, and one of 6: `[batch, 5, 3]`."""
  random = np.random.RandomState(seed)
  made = []
  for rows in (8, 8, 6):
    x = random.normal(size=(rows, 5, 3)).astype('float32')
    y = random.normal(size=(rows, 5)).astype('float32')
    mask = (random.uniform(size=(rows, 5)) < 0.6).astype('float32')
    mask[0] = 0.0
    weights = random.uniform(0.5, 2.0, size=rows).astype('float32')
    made.append((x, y, mask, weights))
  return made


def start():
  return np.linspace(-0.5, 0.5, 3)


class Tokens(tftrain.Task):
  """Linear regression per token; `terms` says what is added up."""

  def __init__(self, terms):
    layer = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((5, 3)), layer])
    super().__init__(model, keras.optimizers.SGD(_RATE))
    layer.kernel.assign(start()[:, np.newaxis])
    self._terms = terms

  def loss(self, batch, training):
    x, y, mask, weights = batch
    outputs = self.model(x, training=training)[..., 0]
    return self._terms(outputs, y, mask, weights)


def masked(outputs, y, mask, weights):
  del weights
  return tftrain.Loss((outputs - y) ** 2, mask, error=tf.abs(outputs - y))


def by_row(outputs, y, mask, weights):
  del mask
  return tftrain.Loss((outputs - y) ** 2, weights, error=tf.abs(outputs - y))


def several(outputs, y, mask, weights):
  tokens = tftrain.Loss((outputs - y) ** 2, mask, error=tf.abs(outputs - y))
  rows = tftrain.Loss(tf.reduce_mean(outputs, -1) ** 2, weights)
  plain = tftrain.Loss(tf.abs(outputs))
  return 0.5 * tokens + rows * 2.0 + plain


def masked_and_nan(outputs, y, mask, weights):
  del weights
  values = tf.where(mask > 0, (outputs - y) ** 2, np.nan)
  return tftrain.Loss(values, mask, error=values)


_KINDS = {
  'masked': (masked, lambda o, y, m, w: _mean((o - y) ** 2, m)),
  'by row': (by_row, lambda o, y, m, w: _mean((o - y) ** 2, w[:, None])),
  'several': (
    several,
    lambda o, y, m, w: (
      0.5 * _mean((o - y) ** 2, m)
      + 2.0 * _mean(tf.reduce_mean(o, -1) ** 2, w)
      + tf.reduce_mean(tf.abs(o))
    ),
  ),
  'nan': (masked_and_nan, lambda o, y, m, w: _mean((o - y) ** 2, m)),
}
kinds = pytest.mark.parametrize(
  ('terms', 'objective'), _KINDS.values(), ids=_KINDS.keys()
)


def _mean(values, weights):
  weights = tf.broadcast_to(weights, values.shape)
  return tf.reduce_sum(values * weights) / tf.reduce_sum(weights)


def oracle(objective, data):
  """(losses of each step before it, kernel after all)."""
  kernel = tf.Variable(start(), dtype=tf.float64)
  losses = []
  for batch in data:
    x, y, mask, weights = (tf.cast(part, tf.float64) for part in batch)
    with tf.GradientTape() as tape:
      outputs = tf.linalg.matvec(x, kernel)
      loss = objective(outputs, y, mask, weights)
    losses.append(float(loss))
    kernel.assign_sub(_RATE * tape.gradient(loss, kernel))
  return losses, kernel.numpy()


def train(terms, strategy, options, data=None):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = Tokens(terms)
  trainer = tftrain.Trainer(
    task,
    tftrain.data.DatasetPipeline(data or batches(), repeat=False),
    strategy=strategy,
    log_every=1,
    update=tftrain.Update(**options),
  )
  reports = list(trainer.steps(3))
  return task, reports


@kinds
@ways
def test_weights_and_loss_equal_the_oracle(terms, objective, strategy, options):
  losses, kernel = oracle(objective, batches())
  task, reports = train(terms, strategy, options)
  found = [report.scalars['loss'] for report in reports]
  np.testing.assert_allclose(found, losses, rtol=2e-6)
  weights = task.model.layers[0].kernel.numpy()[:, 0]
  np.testing.assert_allclose(weights, kernel, rtol=0, atol=1e-6)


@kinds
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_evaluation_divides_all_sums_once(terms, objective, strategy):
  """Over batches with unequal masks, a mean of means would differ."""
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = Tokens(terms)
  evaluator = tftrain.Evaluator(task, batches(), strategy=strategy)
  scalars = evaluator.evaluate()
  x, y, mask, weights = (
    tf.cast(np.concatenate(parts), tf.float64)
    for parts in zip(*batches(), strict=True)
  )
  outputs = tf.linalg.matvec(x, tf.constant(start()))
  expected = float(objective(outputs, y, mask, weights))
  np.testing.assert_allclose(scalars['loss'], expected, rtol=1e-6)
  if terms is not by_row:
    error = float(_mean(tf.abs(outputs - y), mask))
    if terms is masked_and_nan:
      error = float(_mean((outputs - y) ** 2, mask))
    np.testing.assert_allclose(scalars['error'], error, rtol=1e-6)
  assert not [name for name in scalars if '#' in name]
  assert not [name for name in evaluator.tags if '#' in name]


@ways
def test_a_batch_without_weight_moves_nothing(strategy, options):
  data = batches()
  x, y, mask, weights = data[1]
  data[1] = (x, y, np.zeros_like(mask), weights)
  task, reports = train(masked, strategy, options, data)
  _, kernel = oracle(_KINDS['masked'][1], [data[0], data[2]])
  weights = task.model.layers[0].kernel.numpy()[:, 0]
  np.testing.assert_allclose(weights, kernel, rtol=0, atol=1e-6)
  assert 'loss' not in reports[1].scalars  # no mean of nothing
  assert reports[1].scalars['gradient_norm'] == 0.0


@pytest.mark.parametrize(
  ('weights', 'said'),
  [
    (lambda mask: mask[:, :3], r'weights has shape \(8, 3\)'),
    (lambda mask: mask[:, :, None, None] + tf.zeros([2]), 'broadcast'),
    (lambda mask: 1.0, 'weights is a scalar'),
  ],
)
def test_weights_that_do_not_broadcast_are_refused(weights, said):
  terms = lambda outputs, y, mask, _: tftrain.Loss(outputs, weights(mask))
  with pytest.raises(errors.TaskError, match=said) as info:
    train(terms, 'one_device', {})
  assert '\n' not in str(info.value)


def test_a_tensor_is_taken_for_values():
  plain, _ = train(lambda o, y, m, w: (o - y) ** 2, 'one_device', {})
  same, _ = train(
    lambda o, y, m, w: tftrain.Loss((o - y) ** 2), 'one_device', {}
  )
  np.testing.assert_array_equal(
    plain.model.get_weights()[0], same.model.get_weights()[0]
  )


def test_losses_add_up_like_numbers():
  one = tftrain.Loss(tf.ones([2]), a=tf.ones([2]))
  other = tftrain.Loss(tf.ones([2]), b=tf.ones([2]))
  added = sum([one, other])
  assert [term.factor for term in (2 * added).terms] == [2.0, 2.0]
  assert set(added.metrics) == {'a', 'b'} and len(one.terms) == 1
  with pytest.raises(errors.TaskError, match="metric 'a'"):
    one + one
  with pytest.raises(TypeError):
    one + 1.0


# Gradients that are changed before they are applied.


class Changed(Tokens):
  def __init__(self, terms, change):
    super().__init__(terms)
    self._change = change

  def train_step(self, batch):
    gradients = self.gradients(self.loss, batch)
    values = [self._change(value) for value in gradients.values]
    return self.apply(gradients._replace(values=values))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('strategy', 'options'),
  [
    ('one_device', {}),
    ('mirrored', {'accumulate': 2}),
    ('one_device', {'loss_scale': 64.0}),
  ],
)
@pytest.mark.parametrize('change', [tf.sign, lambda g: 0 * g, lambda g: 3 * g])
def test_changed_gradients_are_applied(strategy, options, change):
  kernel = tf.Variable(start(), dtype=tf.float64)
  for batch in batches():
    x, y, mask, weights = (tf.cast(part, tf.float64) for part in batch)
    with tf.GradientTape() as tape:
      loss = _KINDS['several'][1](tf.linalg.matvec(x, kernel), y, mask, weights)
    gradient = tape.gradient(loss, kernel)
    kernel.assign_sub(_RATE * tf.cast(change(gradient), tf.float64))
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = Changed(several, change)
  trainer = tftrain.Trainer(
    task,
    tftrain.data.DatasetPipeline(batches(), repeat=False),
    strategy=strategy,
    log_every=1,
    update=tftrain.Update(**options),
  )
  norm = trainer.train(3).scalars['gradient_norm']
  found = task.model.layers[0].kernel.numpy()[:, 0]
  np.testing.assert_allclose(found, kernel.numpy(), rtol=0, atol=1e-6)
  expected = np.linalg.norm(change(gradient))
  np.testing.assert_allclose(norm, expected, rtol=1e-5, atol=1e-9)


def test_changed_gradients_of_fused_variables_are_applied():
  class Zeroed(tftrain.SupervisedTask):
    def train_step(self, batch):
      gradients = self.gradients(self.loss, batch)
      values = [0.0 * value for value in gradients.values]
      return self.apply(gradients._replace(values=values))

  task = Zeroed(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )
  before = task.model.get_weights()
  tftrain.Trainer(task, tftrain.Arrays(small_tasks.arrays(), 8)).train(3)
  for one, other in zip(before, task.model.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)


def test_the_metrics_of_a_loss_can_be_passed_on():
  one = tftrain.Loss(tf.ones([2]), tf.ones([2]), a=2.0)
  again = tftrain.Loss(one.values, **one.metrics)
  assert again.metrics == {'a': 2.0} and again.weights is None

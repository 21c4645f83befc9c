"""Loss: wrong kinds, shapes and weights; regularization counts once."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import numpy_network
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors


def test_losses_of_the_wrong_kind():
  data = tftrain.Arrays(small_tasks.arrays(), 8)

  def task_with(loss):
    task = type('Mine', (tftrain.Task,), {'loss': loss})
    return lambda: task(small_tasks.model(), keras.optimizers.Adam())

  with error_lines.refused(errors.TaskError, 'Loss(values)'):
    small_tasks.trainer(data, task_with(lambda self, batch, training: 1.0))
  with error_lines.refused(errors.TaskError, 'no gradient reaches', 'kernel'):
    small_tasks.trainer(
      data,
      task_with(lambda self, b, training: tftrain.Loss(b[0][:, 0])),
    )
  with error_lines.refused(errors.TaskError, '`loss`', 'rename'):
    small_tasks.trainer(
      data,
      task_with(
        lambda self, b, training: tftrain.Loss(
          self.model(b[0])[:, 0], **{'loss': 1.0}
        )
      ),
    )
  with error_lines.refused(errors.TaskError, 'no optimizer'):
    small_tasks.trainer(
      [small_tasks.regression()], lambda: small_tasks.weighted(optimizer=None)
    )
  with error_lines.refused(errors.TaskError, 'no loss(batch, training)'):
    small_tasks.trainer(
      data, lambda: tftrain.Task(small_tasks.model(), keras.optimizers.SGD())
    )


def test_numbers_of_the_wrong_length_are_refused():
  data = tftrain.Arrays(small_tasks.arrays(), 8)

  def make(values, **others):
    loss = lambda self, b, training: tftrain.Loss(
      values(self.model(b[0])), **{k: f(b) for k, f in others.items()}
    )
    task = type('Mine', (tftrain.Task,), {'loss': loss})
    return lambda: task(small_tasks.model(), keras.optimizers.SGD())

  right = lambda logits: logits[:, 0]
  with error_lines.refused(errors.TaskError, 'values has 24 entries for 8'):
    small_tasks.trainer(data, make(lambda logits: tf.reshape(logits, [-1])))
  with error_lines.refused(errors.TaskError, 'weights has 1 entries for 8'):
    small_tasks.trainer(data, make(right, weights=lambda b: tf.ones([1])))
  with error_lines.refused(errors.TaskError, 'extra has 1 entries for 8'):
    small_tasks.trainer(data, make(right, extra=lambda b: tf.ones([1])))
  with error_lines.refused(errors.TaskError, '`gradient_norm`'):
    small_tasks.trainer(data, make(right, gradient_norm=lambda b: tf.ones([8])))
  with error_lines.refused(errors.TaskError, "'step'", 'rename'):
    small_tasks.trainer(data, make(right, step=lambda b: tf.ones([8])))
  with error_lines.refused(errors.TaskError, "'loss'", 'rename'):
    metric = {'loss': keras.metrics.SparseCategoricalAccuracy()}
    small_tasks.trainer(data, lambda: small_tasks.supervised(metrics=metric))


def test_a_layer_shared_by_two_attributes_is_regularized_once():
  def make(shared):
    keras.utils.set_random_seed(0)
    task = small_tasks.supervised(regularizer=keras.regularizers.L2(1.0))
    if shared:
      task.again = task.model.layers[0]
    return task

  data = tftrain.Arrays(small_tasks.arrays(), 8, training=False)
  losses = [
    tftrain.Evaluator(make(shared), data).evaluate()['loss']
    for shared in (False, True)
  ]
  assert losses[0] == losses[1]


class Contrast(step_runs.OwnStep):
  """Looks at the examples of all replicas."""

  def loss(self, batch, training):
    x, y = batch
    logits = self.model(x, training=training)
    context = tf.distribute.get_replica_context()
    everybody = context.all_gather(logits, axis=0)
    logits -= 0.1 * tf.reduce_mean(everybody, axis=0)
    return tftrain.Loss(step_runs.cross_entropy(y, logits))

  def train_step(self, batch):
    return self.minimize(self.loss, batch)


@pytest.mark.slow
def test_a_loss_may_look_at_all_replicas():
  runs = [
    step_runs.train(step_runs.of(Contrast, keras.optimizers.SGD), 3, name)[0]
    for name in step_runs.STRATEGIES
  ]
  small_tasks.assert_close(*step_runs.states(runs), 1e-5)


@numpy_network.on_one_and_two
def test_weights_that_sum_to_zero_change_nothing_and_the_run_goes_on(strategy):
  x, y, weights = small_tasks.regression(32)
  weights[:4] = 0.0  # one micro-batch, or one replica: nothing is wrong
  weights[16:24] = 0.0
  batches = [
    (x[i : i + 8], y[i : i + 8], weights[i : i + 8]) for i in (0, 8, 16, 24)
  ]
  # A scale that does not adapt skips nothing.
  update = tftrain.Update(accumulate=2, loss_scale=8.0)
  make = lambda: small_tasks.weighted(keras.optimizers.SGD(0.01))
  trainer = numpy_network.trainer(make, batches, strategy, update)
  trainer.train(2)
  before = trainer.task.model.get_weights()
  trainer.train(3)
  for one, other in zip(before, trainer.task.model.get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)
  trainer.train(4)
  assert (trainer.step, trainer.updates) == (4, 4)
  after = trainer.task.model.get_weights()
  assert np.isfinite(after[0]).all() and (before[0] != after[0]).any()


@numpy_network.on_one_and_two
def test_losses_that_cannot_be_trained(strategy):
  def with_loss(loss):
    task = type('Mine', (tftrain.Task,), {'loss': loss})
    return lambda: task(small_tasks.model(), keras.optimizers.SGD())

  for fragments, values in (
    (
      ('one entry per example', ' entries for '),
      lambda task, x: tf.reshape(task.model(x), [-1]),
    ),
    (('no gradient reaches', 'kernel'), lambda task, x: x[:, 0]),
  ):
    loss = lambda self, batch, training, values=values: tftrain.Loss(
      values(self, batch[0])
    )
    numpy_network.refuses(
      fragments, {'accumulate': 2}, with_loss(loss), strategy=strategy
    )


class MeanOfRows(tftrain.Task):
  """Returns the mean over the rows of a call as a scalar, or each value."""

  def __init__(self, as_scalar):
    keras.utils.set_random_seed(0)
    super().__init__(
      keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)]),
      keras.optimizers.SGD(0.1),
    )
    self._as_scalar = as_scalar

  def loss(self, batch, training):
    x, y = batch
    values = (self.model(x, training=training)[:, 0] - y) ** 2
    return tf.reduce_mean(values) if self._as_scalar else tftrain.Loss(values)


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('one_device', {'accumulate': 2}),
    ('mirrored', {}),
    pytest.param('mirrored', {'accumulate': 2}, marks=pytest.mark.slow),
  ],
)
def test_a_scalar_mean_is_exact_where_rows_are_unequal(name, options):
  x, y, _ = small_tasks.regression(7)  # 4 and 3 rows; 2, 2, 2 and 1
  x = np.resize(x, (7, 6)).astype('float32')
  runs = []
  for as_scalar in (True, False):
    strategy = tftrain.make_strategy(name)
    with strategy.scope():
      task = MeanOfRows(as_scalar)
    trainer = tftrain.Trainer(
      task,
      [(x, y)] * 3,
      strategy=strategy,
      update=tftrain.Update(**options),
      log_every=1,
    )
    runs.append((trainer.train(3).scalars['loss'], task.model.get_weights()))
  (loss, weights), (expected_loss, expected) = runs
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  for one, other in zip(weights, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_a_scalar_beside_weights_is_refused():
  class Mine(tftrain.Task):
    def loss(self, batch, training):
      x, y, weights = batch
      error = self.model(x, training=training)[:, 0] - y
      return tftrain.Loss(tf.reduce_mean(error**2), weights)

  make = lambda: Mine(
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]),
    keras.optimizers.SGD(0.1),
  )
  with error_lines.refused(errors.TaskError, 'weights beside a scalar'):
    small_tasks.trainer([small_tasks.regression()], make)


def test_a_feature_that_is_not_finite_is_named():
  x = np.ones([16, 3], 'float32')
  x[5, 2] = np.nan
  weights = np.where(np.arange(16) == 5, 0.0, 1.0).astype('float32')

  class Mine(tftrain.Task):
    def loss(self, batch, training):
      features, weights = batch
      outputs = self.model(features['age'], training=training)[:, 0]
      return tftrain.Loss(outputs**2, weights)

  trainer = tftrain.Trainer(
    Mine(
      keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]),
      keras.optimizers.SGD(0.1),
    ),
    tftrain.Arrays(({'age': x}, weights), 4, training=False),
  )
  with error_lines.refused(
    errors.NonFiniteError, 'step 2', "batch[0]['age'][1, 2] is nan"
  ):
    trainer.train(4)

"""Rematerialization: nothing but memory may change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain

STRATEGIES = ('one_device', 'mirrored')

# Block hands masks on as it is; Keras looks at an attribute.
pytestmark = pytest.mark.filterwarnings('ignore:.*does not support masking')


class Block(keras.layers.Layer):
  """Takes neither `training` nor `mask`: what it holds gets them from Keras."""

  def __init__(self, *layers, **options):
    super().__init__(**options)
    self.inner = list(layers)
    self.runs = 0

  def build(self, shape):
    del shape  # the inner layers are built when they are called

  def call(self, x):
    self.runs += 1
    for layer in self.inner:
      x = layer(x)
    return x


def task(*layers, outputs=3):
  head = keras.layers.Dense(outputs)
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return tftrain.SupervisedTask(
    keras.Sequential([*layers, head]), loss, keras.optimizers.SGD(0.5)
  )


def train(make_task, strategy, data=None, steps=4, **options):
  """A Trainer after some steps, its loss at each and its state."""
  keras.utils.set_random_seed(3)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    made = make_task()
  data = tftrain.Arrays(data or small_tasks.arrays(), 8)
  update = tftrain.Update(**options)
  trainer = tftrain.Trainer(made, data, strategy=strategy, update=update)
  losses = [trainer.train(n + 1).scalars['loss'] for n in range(steps)]
  state = small_tasks.state_of(trainer)
  # A generator that nothing draws from moves too; norms sum in another order.
  state = {
    name: value
    for name, value in state.items()
    if not name.endswith(('seed_generator_state', 'trainer/means'))
  }
  return trainer, losses, state


def assert_changes_nothing(
  make_task, strategy, data=None, remat='block$', **options
):
  kept, losses, state = train(make_task, strategy, data, **options)
  again, others, other = train(
    make_task, strategy, data, remat=remat, **options
  )
  np.testing.assert_allclose(losses, others, rtol=0, atol=1e-6)
  small_tasks.assert_close(state, other, 1e-6)
  assert losses[0] != pytest.approx(losses[-1], abs=1e-3)
  assert runs(again) > runs(kept) or 'block' not in remat


def runs(trainer):
  (found,) = [
    layer.runs
    for layer in trainer.task.model._flatten_layers()
    if isinstance(layer, Block)
  ]
  return found


def dropping():
  dense, drop = keras.layers.Dense(8, 'relu'), keras.layers.Dropout(0.4)
  return task(Block(dense, drop))


@pytest.mark.parametrize(
  ('strategy', 'remat'),
  [
    pytest.param('one_device', 'block$', marks=pytest.mark.slow),
    ('mirrored', 'block$'),
    pytest.param('mirrored', 'dense|dropout', marks=pytest.mark.slow),
    # With what is in it.
    pytest.param('one_device', 'block', marks=pytest.mark.slow),
  ],
)
def test_dropout(strategy, remat):
  assert_changes_nothing(dropping, strategy, remat=remat)


@pytest.mark.slow
@pytest.mark.parametrize('options', [{'accumulate': 2}, {'jit': 'step'}])
def test_with_other_options(options):
  make = dropping
  if 'jit' in options:  # XLA has random numbers of its own
    make = lambda: task(Block(keras.layers.Dense(8, 'relu')))
  assert_changes_nothing(make, 'one_device', **options)


def test_mixed_precision():
  def make():
    policy = 'mixed_bfloat16'
    dense = keras.layers.Dense(8, 'relu', dtype=policy)
    return task(Block(dense, dtype=policy))

  assert_changes_nothing(make, 'one_device', remat='dense')


# Masks.


def sentences():
  random = np.random.RandomState(0)
  ids = random.randint(1, 9, (40, 7))
  ids[np.arange(7) >= random.randint(2, 8, 40)[:, None]] = 0
  return ids, (ids.sum(-1) % 3).astype('int64')


@pytest.mark.slow
def test_masks_go_in_and_out():
  """The block hands its input's mask to an LSTM, and that of it to the mean."""

  def make():
    lstm = keras.layers.LSTM(5, return_sequences=True)
    return task(
      keras.layers.Embedding(9, 4, mask_zero=True),
      Block(lstm),
      keras.layers.GlobalAveragePooling1D(),
    )

  assert_changes_nothing(make, 'one_device', sentences())


class Pooled(Block):
  """A mask as an argument, which no gradient passes."""

  def call(self, x, mask=None):
    x = super().call(x)
    kept = tf.cast(mask, x.dtype)[..., None]
    return tf.reduce_sum(x * kept, 1) / tf.reduce_sum(kept, 1)


def test_masks_that_are_arguments():
  def make():
    embedding = keras.layers.Embedding(9, 4, mask_zero=True)
    return task(embedding, Pooled(keras.layers.Dense(5), name='block'))

  assert_changes_nothing(make, 'one_device', sentences())


# Structures.


class Branches(Block):
  def call(self, inputs, scale=None, bias=None):
    assert bias is None
    x, (ids, flags) = inputs['x'], inputs['rest']
    y = super().call(x) * scale
    return {'y': [y, None], 'kind': 'relu', 'flags': flags, 'ids': ids + 1}


class Branched(keras.Model):
  def __init__(self):
    super().__init__()
    self.block = Branches(keras.layers.Dense(8, 'relu'), name='block')
    self.dense = keras.layers.Dense(3)

  def call(self, x):
    ids = tf.range(tf.shape(x)[0])
    rest = (ids, ids > 2)
    found = self.block({'x': x, 'rest': rest}, scale=2.0, bias=None)
    (y, nothing), kind = found['y'], found['kind']
    assert nothing is None and kind == 'relu'
    added = tf.cast(found['ids'], y.dtype) * tf.cast(found['flags'], y.dtype)
    return self.dense(y + 0.01 * added[:, None])


def test_structures_with_none_and_other_things():
  def make():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(Branched(), loss, keras.optimizers.SGD(0.5))

  assert_changes_nothing(make, 'one_device')


class Silent(Block):
  def call(self, x):
    super().call(x)


class Beside(keras.Model):
  def __init__(self):
    super().__init__()
    self.block = Silent()
    self.dense = keras.layers.Dense(3)

  def call(self, x):
    assert self.block(x) is None
    return self.dense(x)


def test_a_layer_that_returns_nothing():
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  make = lambda: tftrain.SupervisedTask(
    Beside(), loss, keras.optimizers.SGD(0.5)
  )
  train(make, 'one_device', steps=1, remat='silent')


# Losses that layers add.


class Adding(Block):
  def call(self, x):
    y = super().call(x)
    self.add_loss(tf.reduce_mean(y**2))
    return y


@pytest.mark.slow
@pytest.mark.parametrize('strategy', STRATEGIES)
def test_losses_added_inside_are_trained(strategy):
  def make(factor=0.1):
    dense = keras.layers.Dense(8, 'relu', activity_regularizer='l2')
    return task(Adding(dense, activity_regularizer='l1', name='block'))

  assert_changes_nothing(make, strategy)


# Refusals.


class Counter(tf.Module):
  def __init__(self):
    super().__init__()
    self.count = tf.Variable(0, trainable=False)


class Counting(Block):
  def __init__(self):
    super().__init__()
    self.counter = Counter()


class Measuring(Block):
  def __init__(self):
    super().__init__()
    self.metric = keras.metrics.Mean('height')


@pytest.mark.parametrize(
  ('make', 'name'),
  [
    (lambda: keras.layers.BatchNormalization(), 'moving_mean'),
    (
      lambda: keras.layers.SpectralNormalization(keras.layers.Dense(4)),
      'vector_u',
    ),
    (Counting, 'counter/count'),
    (Measuring, 'height'),
  ],
)
def test_layers_with_state_are_refused(make, name):
  block = lambda: task(keras.Input((6,)), Block(make()))
  with pytest.raises(tftrain.Error) as info:
    train(block, 'one_device', steps=1, remat='block$')
  message = str(info.value)
  assert message.startswith('Update.remat: model/sequential/block holds ')
  assert name in message and '\n' not in message


def test_frozen_weights_are_no_state():
  def make():
    frozen = keras.layers.Dense(8, 'relu', trainable=False)
    frozen.build((None, 6))
    late = keras.layers.Dense(8, 'relu')
    late.build((None, 8))
    late.trainable = False
    return task(Block(frozen, late, keras.layers.Dense(4)))

  assert_changes_nothing(make, 'one_device', freeze='block/dense/bias')


def test_building_computes_layers_again_too():
  """Or a model that fits only with `remat` would not get through it."""
  seen = {}
  for remat in (None, 'block$'):
    trainer, _, _ = train(dropping, 'one_device', steps=0, remat=remat)
    seen[remat] = runs(trainer)
  assert seen['block$'] == seen[None] + 1


def test_building_sees_no_more_rows_than_a_pass():
  rows = []

  class Counting(Block):
    def call(self, x):
      rows.append(x.shape[0])
      return super().call(x)

  train(lambda: task(Counting(keras.layers.Dense(4))), 'mirrored', accumulate=2)
  assert {r for r in rows if r is not None} == {2}  # 8 rows, 2 replicas

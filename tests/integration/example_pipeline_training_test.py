"""Training and evaluation on Examples: on one replica and on two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain

_STEPS, _BATCH = 12, 8


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """67 records in 3 files, and two epochs of 67 are no whole batches."""
  folder = tmp_path_factory.mktemp('records')
  x, y = small_tasks.arrays()
  tftrain.data.write_records(
    folder / 'train',
    ({'x': one, 'y': label} for one, label in zip(x, y, strict=True)),
    shards=3,
  )
  return folder / 'train-*'


class Seen(tftrain.SupervisedTask):
  """Reports what the batch was made of, to find two that differ."""

  def loss(self, batch, training):
    found = super().loss(batch, training)
    return tftrain.Loss(
      found.values,
      found.weights,
      **found.metrics,
      seen=tf.reduce_sum(tf.cast(batch[0], tf.float32), -1),
      squares=tf.reduce_sum(tf.cast(batch[0], tf.float32) ** 2, -1),
    )


def task(dropout=0.2):
  return Seen(
    small_tasks.model(dropout=dropout),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(0.01),
  )


class Places(tftrain.Task):
  """One label for each place of a packed row; its mean over the real ones."""

  def loss(self, batch, training):
    ids, labels, real = batch
    logits = self.model(ids, training=training)
    losses = keras.losses.sparse_categorical_crossentropy(
      labels, logits, from_logits=True
    )
    values = tf.reduce_sum(losses * real, -1) / tf.reduce_sum(real, -1)
    numbers = tf.cast(ids, tf.float32)
    return tftrain.Loss(
      values,
      seen=tf.reduce_sum(numbers, -1),
      squares=tf.reduce_sum(numbers**2, -1),
    )


def packed_task():
  layers = [
    keras.Input((16,), dtype='int64'),
    keras.layers.Embedding(64, 4),
    keras.layers.Dropout(0.2),
    keras.layers.Dense(3),
  ]
  return Places(keras.Sequential(layers), keras.optimizers.SGD(0.1))


def records(files):
  return tftrain.data.Examples(
    tftrain.data.TFRecords(files), _BATCH, select=('x', 'y'), shuffle=8
  )


def mapped(files):
  def noisy(one, seed):
    return {**one, 'x': one['x'] + tf.random.stateless_normal([6], seed)}

  return tftrain.data.Examples(
    tftrain.data.TFRecords(files),
    _BATCH,
    map=noisy,
    select=('x', 'y'),
    shuffle=8,
  )


def filtered(files):
  return tftrain.data.Examples(
    tftrain.data.TFRecords(files),
    _BATCH,
    filter=lambda one: one['x'][0] > -0.8,
    select=('x', 'y'),
    shuffle=8,
  )


def packed(files):
  del files
  lengths = np.random.RandomState(0).randint(1, 13, 67)
  ids = tf.RaggedTensor.from_row_lengths(
    np.random.RandomState(1).randint(1, 64, lengths.sum()),
    lengths.astype('int64'),
  )

  def split(batch):
    weights = tf.cast(batch['ids_segment_ids'] > 0, tf.float32)
    return batch['ids'], batch['ids'] % 3, weights

  return tftrain.data.Examples(
    tftrain.data.InMemory({'ids': ids}),
    _BATCH,
    filter=lambda one: tf.size(one['ids']) > 2,
    batcher=tftrain.data.Packed(16, window=13),
    map_batch=split,
  )


_DATA = {
  'records': (records, task),
  'mapped': (mapped, task),
  'filtered': (filtered, task),
  'packed': (packed, packed_task),
}
_CURSOR = {'records': False, 'mapped': False, 'filtered': True, 'packed': True}


def trainer(kind, replicas, files, dropout=None):
  keras.utils.set_random_seed(0)
  make_data, make_task = _DATA[kind]
  strategy = tftrain.make_strategy(('one_device', 'mirrored')[replicas - 1])
  assert strategy.num_replicas_in_sync == replicas
  with strategy.scope():
    made = make_task()
  for layer in made.model.layers:
    if dropout is not None and isinstance(layer, keras.layers.Dropout):
      layer.rate = dropout
  data = make_data(files)
  assert data.has_cursor == _CURSOR[kind]
  return tftrain.Trainer(made, data, strategy=strategy, log_every=1)


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind',
  [
    'records',
    *(
      pytest.param(kind, marks=pytest.mark.slow)
      for kind in ('packed', 'mapped', 'filtered')
    ),
  ],
)
def test_one_replica_and_two_see_the_same_and_learn_the_same(kind, files):
  states, seen = [], []
  for replicas in (1, 2):
    run = trainer(kind, replicas, files, dropout=0.0)
    before = small_tasks.state_of(run)
    seen.append([
      [report.scalars['seen'], report.scalars['squares']]
      for report in run.steps(_STEPS)
    ])  # fmt: skip
    states.append(small_tasks.state_of(run))
  np.testing.assert_allclose(seen[0], seen[1], rtol=1e-5, atol=1e-5)
  assert len({tuple(one) for one in seen[0]}) == _STEPS  # no batch came twice
  moved = {n for n in before if (before[n] != states[0][n]).any()}
  assert any('kernel' in name for name in moved)
  for state in states:
    state.pop('trainer/means')
  small_tasks.assert_close(states[0], states[1], 1e-5)
  if _CURSOR[kind]:
    cursors = [state['trainer/cursor'].tolist() for state in states]
    assert cursors[0] == cursors[1] != [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'replicas'),
  [
    ('mapped', 1),
    *(
      pytest.param(kind, replicas, marks=pytest.mark.slow)
      for kind, replicas in (
        ('records', 1),
        ('records', 2),
        ('packed', 1),
        ('packed', 2),
        ('mapped', 2),
        ('filtered', 1),
        ('filtered', 2),
      )
    ),
  ],
)
def test_a_run_restored_at_any_step_never_stopped(kind, replicas, files):
  whole = trainer(kind, replicas, files)
  kept, expected = {}, None
  for report in whole.steps(_STEPS):
    kept[report.step] = small_tasks.state_of(whole)
  expected = small_tasks.state_of(whole)
  for step in (1, 5, 10):  # 10 lies in the second epoch
    resumed = trainer(kind, replicas, files)
    resumed.write_state(kept[step])
    assert resumed.step == step
    resumed.train(_STEPS)
    small_tasks.assert_same_bits(small_tasks.state_of(resumed), expected)


@pytest.mark.slow
def test_a_trainer_goes_back_to_a_state_of_its_own(files):
  run = trainer('packed', 1, files)
  run.train(5)
  kept = small_tasks.state_of(run)
  run.train(9)
  expected = small_tasks.state_of(run)
  run.write_state(kept)
  run.train(9)
  small_tasks.assert_same_bits(small_tasks.state_of(run), expected)


@pytest.mark.parametrize('kind', ['packed', 'filtered'])
@pytest.mark.slow
def test_an_experiment_resumes_by_the_cursor_in_its_checkpoint(
  kind, files, tmp_path
):
  make_data, make_task = _DATA[kind]

  def experiment(steps):
    return tftrain.Experiment(
      make_task,
      lambda: make_data(files),
      steps=steps,
      strategy='one_device',
      log_every=5,
      checkpoint_every=5,
      export=False,
    )

  whole = experiment(_STEPS).prepare(tmp_path / 'whole')
  whole.train()
  experiment(6).train(tmp_path / 'stopped')
  resumed = experiment(_STEPS).prepare(tmp_path / 'stopped')
  assert resumed.train().step == _STEPS
  one, other = (
    small_tasks.state_of(resumed.trainer),
    small_tasks.state_of(whole.trainer),
  )
  for state in (one, other):  # step 6 was an end, and so was logged
    state.pop('trainer/means')
  small_tasks.assert_same_bits(one, other)
  assert one['trainer/cursor'].any()


class Exact(tftrain.Task):
  """Its means are those of numbers that binary fractions hold exactly."""

  def loss(self, batch, training):
    x, weights = batch[0], batch[-1]
    values = self.model(x, training=training)[:, 0]
    if len(batch) == 1:
      return tftrain.Loss(values)
    return tftrain.Loss(values, weights, twice=2 * x[:, 0])


@pytest.mark.parametrize(
  'filtering', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_an_evaluation_is_exact_whatever_its_remainder(filtering):
  x = np.random.RandomState(0).randint(-64, 64, [67, 1]).astype('float32') / 8
  keep = (lambda pair: pair[0][0] > -7) if filtering else None
  kept = x[x[:, 0] > -7] if filtering else x
  assert len(kept) % 2 and len(kept) % 8  # divides by nothing
  found = []
  for replicas in ('one_device', 'mirrored'):
    strategy = tftrain.make_strategy(replicas)
    with strategy.scope():
      layers = [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
      model = keras.Sequential(layers)
      model.layers[0].kernel.assign([[1.0]])
      measured = Exact(model, keras.optimizers.SGD(0.1))
    for remainder in ('pad', 'keep'):
      # `keep` leaves no weights, so they are given.
      arrays = (x,) if remainder == 'pad' else (x, np.ones(67, np.float32))
      source = tftrain.data.InMemory(arrays)
      data = tftrain.data.Examples(
        source, 8, training=False, remainder=remainder, filter=keep
      )
      evaluator = tftrain.Evaluator(measured, data, strategy=strategy)
      found += [evaluator.evaluate(), evaluator.evaluate()]
  for scalars in found:
    assert scalars['loss'] == pytest.approx(float(kept.mean()), rel=1e-6)
    assert scalars == found[0]

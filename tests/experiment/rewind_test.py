"""Steps that are not finite: left out, gone back before, or the end."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
import tftrain
from tftrain import errors
from tftrain.checkpoint import format


def bad_arrays(rows=(41,)):
  """cases.arrays with NaN features in some rows."""
  x, y = cases.arrays()
  x[list(rows)] = np.nan
  return x, y


def in_order(arrays, batch_size=8):
  """Batches in the order of the rows, over and over: 8 to an epoch."""
  x, y = arrays
  count = len(y) // batch_size

  def batch(index):
    at = slice(index % count * batch_size, (index % count + 1) * batch_size)
    return x[at], y[at]

  return [batch(index) for index in range(200)]


def one_bad(step, steps=200):
  """Batches that are fine but for that of `step`, counted from 1."""
  batches = in_order(cases.arrays())[:steps]
  x, y = batches[step - 1]
  batches[step - 1] = (np.full_like(x, np.nan), y)
  return batches


# What a step that is left out may change.
_MOVED = {
  f'trainer/{name}'
  for name in (
    'step skipped_steps skipped_in_a_row reported last_logged means cursor '
    'iterator'
  ).split()
}


def changed(before, after):
  """The names of what differs, but for the states of dropouts."""
  return {
    name
    for name, value in before.items()
    if not np.array_equal(value, after[name]) and 'seed' not in name
  }


def assert_step_10_is_left_out(trainer):
  trainer.train(9)
  before = cases.state_of(trainer)
  trainer.train(10)
  after = cases.state_of(trainer)
  assert changed(before, after) <= _MOVED
  assert (trainer.step, trainer.updates) == (10, 9)


@pytest.mark.parametrize('replicas', [1, 2])
def test_a_skipped_step_changes_nothing_but_the_count(replicas):
  strategy = tftrain.make_strategy('mirrored' if replicas > 1 else 'one_device')
  with strategy.scope():
    task = cases.supervised(dropout=0.2)
  trainer = tftrain.Trainer(
    task,
    one_bad(10),
    strategy=strategy,
    log_every=50,
    update=tftrain.Update(max_skips=2, ema=0.9),
  )
  assert_step_10_is_left_out(trainer)
  report = trainer.train(50)
  assert report.scalars['skipped_steps'] == 1
  assert np.isfinite(report.scalars['loss'])


class Pair(tftrain.Task):
  """Two models and optimizers; only the second one's loss sees the labels."""

  def __init__(self):
    super().__init__()
    self.first, self.second = cases.model(dropout=0.2), cases.model()
    self.fast = keras.optimizers.Adam(0.01)
    self.slow = keras.optimizers.SGD(0.1, momentum=0.9)

  def one(self, batch, training):
    outputs = self.first(batch[0], training=training)
    return tftrain.Loss(tf.reduce_mean(outputs**2, 1))

  def loss(self, batch, training):
    outputs = self.second(batch[0], training=training)
    return tftrain.Loss(tf.reduce_mean(outputs**2, 1) * batch[1] ** 2)

  def train_step(self, batch):
    first, second = self.first, self.second
    self.minimize(
      self.one, batch, first.trainable_variables, self.fast, name='first'
    )
    return self.minimize(
      self.loss, batch, second.trainable_variables, self.slow
    )


@pytest.mark.parametrize(
  'replicas', [pytest.param(1, marks=pytest.mark.slow), 2]
)
def test_all_updates_of_a_skipped_step_are_taken_back(replicas):
  """The first one is done, and its slots and average are changed, when the
  second one fails."""
  strategy = tftrain.make_strategy('mirrored' if replicas > 1 else 'one_device')
  with strategy.scope():
    task = Pair()
  x, y = cases.arrays()
  y = y.astype('float32')
  batches = [(x[i % 60 :][:8], y[i % 60 :][:8]) for i in range(40)]
  batches[9] = (batches[9][0], batches[9][1] * np.nan)
  trainer = tftrain.Trainer(
    task,
    batches,
    strategy=strategy,
    log_every=40,
    update=tftrain.Update(max_skips=2, ema=0.9, rates={'first': 2.0}),
  )
  assert_step_10_is_left_out(trainer)
  report = trainer.train(40)
  assert report.scalars['skipped_steps'] == 1
  assert np.isfinite(report.scalars['first/loss'])
  assert np.isfinite(report.scalars['loss'])


def test_more_in_a_row_than_allowed_end_the_run():
  batches = one_bad(10)
  for step in (11, 12):
    batches[step - 1] = batches[9]
  trainer = tftrain.Trainer(
    cases.supervised(), batches, update=tftrain.Update(max_skips=2)
  )
  with pytest.raises(errors.NonFiniteError, match='step 12'):
    trainer.train(20)


def experiment(**options):
  options = {'checkpoint_every': 10, 'log_every': 5, **options}
  return tftrain.Experiment(
    lambda: cases.supervised(dropout=0.2),
    lambda: one_bad(33),
    steps=60,
    steps_per_loop=7,
    export=False,
    rewind=tftrain.experiment.Rewind(skip_batches=5),
    **options,
  )


def lines(model_dir):
  text = (model_dir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def final(model_dir):
  directory = model_dir / 'checkpoints'
  path = format.checkpoint_path(directory, 60)
  return format.read_checkpoint(path)


def test_a_rewind_passes_over_the_steps_before_and_at_the_bad_one(tmp_path):
  experiment().train(tmp_path / 'run')
  manifest, state = final(tmp_path / 'run')
  assert manifest['facts']['passed_over'] == [[29, 33]]
  assert state['trainer/updates'] == 55
  steps = [line['step'] for line in lines(tmp_path / 'run')]
  assert steps == list(range(5, 61, 5))

  told = experiment().prepare(tmp_path / 'told')
  told.trainer.skipped_steps.add(29, 33)
  told.train()
  cases.assert_same_bits(state, final(tmp_path / 'told')[1])
  assert lines(tmp_path / 'run') == lines(tmp_path / 'told')


@pytest.mark.slow
@pytest.mark.parametrize('every', [3, 28, 50])
def test_it_does_not_matter_what_was_gone_back_to(every, tmp_path):
  experiment().train(tmp_path / 'run')
  experiment(checkpoint_every=every).train(tmp_path / 'other')
  cases.assert_same_bits(
    final(tmp_path / 'run')[1], final(tmp_path / 'other')[1]
  )
  assert lines(tmp_path / 'run') == lines(tmp_path / 'other')


@pytest.mark.slow
@pytest.mark.parametrize('stop_at', [25, 31, 45])
def test_a_rewound_run_that_is_stopped_ends_alike(stop_at, tmp_path):
  experiment().train(tmp_path / 'run')
  part = experiment().prepare(tmp_path / 'parts')

  def stop(report):
    if report.step >= stop_at:
      part.trainer.request_stop()

  part._actions = (tftrain.Every(1, stop), *part._actions)
  part.train()
  experiment().train(tmp_path / 'parts')
  cases.assert_same_bits(
    final(tmp_path / 'run')[1], final(tmp_path / 'parts')[1]
  )
  assert lines(tmp_path / 'run') == lines(tmp_path / 'parts')


def test_it_goes_back_only_so_often(tmp_path):
  def always_bad():
    batches = one_bad(33)
    for step in range(34, 60):
      batches[step - 1] = batches[32]
    return batches

  recipe = tftrain.Experiment(
    cases.supervised, always_bad, steps=60, export=False,
    rewind=tftrain.experiment.Rewind(skip_batches=5, max_rewinds=2),
  )  # fmt: skip
  with pytest.raises(errors.NonFiniteError, match='2 times already') as info:
    recipe.train(tmp_path)
  assert 'Rewind.max_rewinds' in str(info.value) and '\n' not in str(info.value)


def test_a_spike_is_found_and_its_memory_is_saved():
  spike = tftrain.actions.LossSpike(3.0, reports=3)
  for step, loss in enumerate((1.0, 1.2, float('nan'), 0.9, 2.5)):
    spike(cases.report(step + 1, scalars={'loss': loss}))
  other = tftrain.actions.LossSpike(3.0, reports=3)
  other.write_state(json.loads(json.dumps(spike.read_state())))
  other(cases.report(7, source='eval/test', scalars={'loss': 99.0}))
  with pytest.raises(
    errors.LossSpikeError, match='step 7: the loss is 9'
  ) as info:
    other(cases.report(7, scalars={'loss': 9.0}))
  assert info.value.step == 7


def test_a_spike_makes_a_run_go_back(tmp_path):
  def spiky():
    batches = in_order(cases.arrays())
    x, y = batches[32]
    batches[32] = (x * 1000.0, y)
    return batches

  recipe = tftrain.Experiment(
    lambda: cases.supervised(keras.optimizers.SGD(0.01)),
    spiky,
    steps=60,
    log_every=5,
    export=False,
    rewind=tftrain.experiment.Rewind(skip_batches=5),
    actions=[tftrain.actions.LossSpike(3.0, reports=3)],
  )
  recipe.train(tmp_path)
  manifest, state = final(tmp_path)
  assert manifest['facts']['passed_over'] == [[31, 35]]
  assert all(
    np.isfinite(v).all() for v in state.values() if v.dtype == np.float32
  )
  assert [line['step'] for line in lines(tmp_path)] == list(range(5, 61, 5))


def test_settings_that_make_no_sense():
  for make in (
    lambda: tftrain.experiment.Rewind(skip_batches=0),
    lambda: tftrain.experiment.Rewind(max_rewinds=0),
    lambda: tftrain.actions.LossSpike(1.0),
    lambda: tftrain.actions.LossSpike(reports=0),
    lambda: tftrain.Update(max_skips=-1),
  ):
    with pytest.raises(errors.ConfigError):
      make()

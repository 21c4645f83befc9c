"""Trainer: blocks, ends of data, Reports and Actions."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import loop_runs
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
  x, y = small_tasks.arrays(examples=80)
  # Of a feature a ReLU makes 0 on some CPUs, so that the loss is a number.
  weights = np.where(np.arange(80) == 77, np.nan, 1).astype('float32')
  batches = [
    (x[i : i + 8], y[i : i + 8], weights[i : i + 8]) for i in range(0, 80, 8)
  ]
  run = tftrain.Experiment(
    small_tasks.supervised, lambda: batches, steps=100, checkpoint_every=4
  ).prepare(tmp_path)
  with error_lines.refused(
    errors.NonFiniteError, 'step 10', 'loss nan', 'not applied'
  ):
    run.train()
  assert run.trainer.step == 10
  assert run.trainer.updates == 9
  assert run.checkpointer.steps()[-1] == 8
  weights = run.trainer.task.model.get_weights()
  assert all(np.isfinite(weight).all() for weight in weights)


def test_a_second_trainer_that_differs_says_in_what():
  trainer, _ = step_runs.train(small_tasks.supervised, 1)
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  with pytest.raises(tftrain.Error, match='give all its Trainers the same upd'):
    tftrain.Trainer(trainer.task, data, update=tftrain.Update(ema=0.9))
  with pytest.raises(tftrain.Error, match='was built under another strategy'):
    tftrain.Trainer(
      trainer.task, data, strategy=tftrain.make_strategy('mirrored')
    )


def test_every_interval_works_with_every_block_length():
  run = loop_runs.trainer(steps_per_loop=100, log_every=60)
  logged, seventy, forty_five = (
    loop_runs.Steps(),
    loop_runs.Steps(),
    loop_runs.Steps(),
  )
  run.train(
    200,
    [logged, tftrain.Every(70, seventy), tftrain.Every(45, forty_five)],
  )
  assert logged == [60, 120, 180, 200]
  assert seventy == [70, 140, 200]
  assert forty_five == [45, 90, 135, 180, 200]
  assert run.traces == 1


@pytest.mark.parametrize(
  'strategy', ['one_device', pytest.param('mirrored', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('kind', ['arrays', 'dataset', 'list', 'unknown'])
def test_data_that_ends_in_a_block_ends_the_run_exactly(kind, strategy):
  x, y = small_tasks.arrays(examples=60)
  dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
  pipelines = {
    'arrays': tftrain.Arrays((x, y), 8, epochs=1),
    'dataset': tftrain.data.DatasetPipeline(dataset, repeat=False),
    'list': tftrain.data.DatasetPipeline(
      [(x[i : i + 8], y[i : i + 8]) for i in range(0, 60, 8)], repeat=False
    ),
    'unknown': tftrain.data.DatasetPipeline(
      lambda: dataset.filter(lambda *_: True), repeat=False
    ),
  }
  run = loop_runs.trainer(pipelines[kind], strategy, log_every=100)
  end = loop_runs.Steps()
  report = run.train(100, [tftrain.Every(50, end)])
  assert run.step == run.updates == report.step == report.last_step == 8
  assert end == [8]
  if kind != 'arrays':  # ordered, so the steps can be taken one by one
    same = loop_runs.trainer(pipelines[kind], strategy, log_every=100)
    reports = [same.train(n) for n in range(1, 9)]
    assert reports[-1].step == 8
    expected = small_tasks.state_of(same)
    ours = small_tasks.state_of(run)
    for name in ('trainer/means', 'trainer/last_logged', 'trainer/ended'):
      expected.pop(name), ours.pop(name)
    small_tasks.assert_same_bits(ours, expected)


def test_steps_gives_the_same_run_in_the_users_own_loop(tmp_path):
  mine, theirs = (
    loop_runs.trainer(log_every=20),
    loop_runs.trainer(log_every=20),
  )
  checkpointer = tftrain.Checkpointer(tmp_path, mine)
  seen = []
  for report in mine.steps(70, [tftrain.Every(30, checkpointer)]):
    assert 'loss' in report.scalars
    seen.append(report.step)
  theirs.train(70)
  assert seen == [20, 40, 60, 70]
  small_tasks.assert_same_bits(
    small_tasks.state_of(mine), small_tasks.state_of(theirs)
  )
  assert checkpointer.steps() == [30, 60, 70]


def test_an_action_may_stop_the_run_and_what_is_due_fires_once_more():
  run = loop_runs.trainer(log_every=10)
  steps, plain, last = loop_runs.Steps(), loop_runs.Steps(), loop_runs.Steps()

  def stop_at_thirty(report):
    return tftrain.Signal.STOP if report.step == 30 else None

  report = run.train(
    100,
    [stop_at_thirty, plain, tftrain.Every(20, steps), tftrain.Every(99, last)],
  )
  assert run.step == 30 and report.is_last
  assert plain == [10, 20, 30]  # each once, and never without scalars
  assert steps == [20, 30]
  assert last == [30]


def test_an_evaluation_leaves_training_metrics_untouched():
  def make():
    return small_tasks.supervised(
      metrics={'keras': keras.metrics.SparseCategoricalAccuracy()}
    )

  scalars = []
  for evaluate in (False, True):
    keras.utils.set_random_seed(2)
    run = tftrain.Trainer(make(), tftrain.Arrays(small_tasks.arrays(), 8))
    data = tftrain.Arrays(small_tasks.arrays(seed=9), 8, training=False)
    evaluator = tftrain.Evaluator(run.task, data)
    also = [tftrain.Every(7, evaluator)] if evaluate else []
    scalars.append(run.train(40, also).scalars)
  assert scalars[0] == scalars[1]
  assert scalars[0]['keras'] == pytest.approx(scalars[0]['accuracy'])


class Pair(tftrain.Task):
  """Two models, two optimizers, one step."""

  def __init__(self, first, second, optimizers):
    super().__init__()
    self.first, self.second = first, second
    self.optimizers_of = optimizers

  def one(self, batch, training):
    return tftrain.Loss(self.first(batch[0], training=training)[:, 0] ** 2)

  def two(self, batch, training):
    difference = self.second(batch[0]) - tf.stop_gradient(self.first(batch[0]))
    return tftrain.Loss(difference[:, 0] ** 2)

  def loss(self, batch, training):
    return self.two(batch, training)

  def train_step(self, batch):
    self.minimize(
      self.one,
      batch,
      self.first.trainable_variables,
      self.optimizers_of['first'],
    )
    return self.minimize(
      self.two,
      batch,
      self.second.trainable_variables,
      self.optimizers_of['second'],
    )


@pytest.mark.slow
def test_two_optimizers_in_one_step_on_one_replica_and_two():
  states = []
  for name in ('one_device', 'mirrored'):
    keras.utils.set_random_seed(0)
    strategy = tftrain.make_strategy(name)
    with strategy.scope():
      task = Pair(
        small_tasks.model(),
        small_tasks.model(),
        {
          'first': keras.optimizers.SGD(0.01),
          'second': keras.optimizers.Adam(0.01),
        },
      )
    data = tftrain.Arrays(small_tasks.arrays(), 8)
    run = tftrain.Trainer(task, data, strategy=strategy)
    before = small_tasks.state_of(run)
    run.train(20)
    states.append(small_tasks.state_of(run))
  assert any((before[k] != states[1][k]).any() for k in before if 'first' in k)
  small_tasks.assert_close(states[0], states[1], 1e-5)


def test_speed_does_not_count_what_actions_take(monkeypatch):
  right, passed = time.perf_counter, []
  monkeypatch.setattr(
    time, 'perf_counter', lambda: right() + 3600 * len(passed)
  )
  run = loop_runs.trainer(log_every=50)
  run.train(50)
  report = run.train(100, [tftrain.Every(10, passed.append)])
  assert len(passed) == 5
  assert report.seconds < 3600  # five Actions took an hour each


def pair_trainer(make):
  names = ('first', 'second')
  optimizers = {name: keras.optimizers.SGD(0.01) for name in names}
  task = make(small_tasks.model(), small_tasks.model(), optimizers)
  return tftrain.Trainer(task, tftrain.Arrays(small_tasks.arrays(), 8))


class Broken(Pair):
  """The first of its two updates meets a NaN, the second never does."""

  def one(self, batch, training):
    values = super().one(batch, training).values
    return tftrain.Loss(values * (1.0 if tf.executing_eagerly() else np.nan))


def test_a_nan_in_the_first_of_two_updates_stops_the_run():
  run = pair_trainer(Broken)
  with pytest.raises(tftrain.errors.NonFiniteError, match='step 1'):
    run.train(5)


class Named(Pair):
  def train_step(self, batch):
    first = self.first.trainable_variables
    self.minimize(
      self.one, batch, first, self.optimizers_of['first'], name='first'
    )
    return self.minimize(
      self.two,
      batch,
      self.second.trainable_variables,
      self.optimizers_of['second'],
    )


def test_all_updates_of_a_step_are_reported():
  run = pair_trainer(Named)
  report = run.train(5)
  assert {'loss', 'first/loss', 'first/gradient_norm'} <= set(report.scalars)


def test_a_task_may_have_a_second_trainer():
  first = loop_runs.trainer()
  first.train(5)
  second = tftrain.Trainer(first.task, tftrain.Arrays(small_tasks.arrays(), 4))
  second.train(5)
  assert second.step == 5


def test_endless_data_that_end_are_an_error_and_no_end_of_the_run():
  """Batches that can be read once, which nobody can tell beforehand."""
  x, y = small_tasks.arrays(80)
  left = iter(range(10))

  def read():
    for number in left:
      rows = slice(8 * number, 8 * number + 8)
      yield x[rows], y[rows]

  def data():
    spec = (tf.TensorSpec([8, 6], tf.float32), tf.TensorSpec([8], tf.int64))
    return tf.data.Dataset.from_generator(read, output_signature=spec)

  pipeline = tftrain.data.DatasetPipeline(data, resume='restart')
  trainer = tftrain.Trainer(small_tasks.supervised(), pipeline)
  with error_lines.refused(errors.InputError, 'repeats without end'):
    trainer.train(100)

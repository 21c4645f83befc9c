"""The Trainer's loop: blocks, ends of data, stops, Reports, Actions."""

import os
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
import tftrain
from tftrain.report import every as every_lib


def trainer(data=None, strategy='one_device', **options):
  keras.utils.set_random_seed(0)
  data = tftrain.Arrays(cases.arrays(), 8) if data is None else data
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = cases.supervised(dropout=0.2)
  return tftrain.Trainer(task, data, strategy=strategy, **options)


class Steps(list):
  """An Action that notes the steps at which it was called."""

  def __call__(self, report):
    self.append(report.step)


def test_every_interval_works_with_every_block_length():
  run = trainer(steps_per_loop=100, log_every=60)
  logged, seventy, forty_five = Steps(), Steps(), Steps()
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
  x, y = cases.arrays(examples=60)
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
  run = trainer(pipelines[kind], strategy, log_every=100)
  end = Steps()
  report = run.train(100, [tftrain.Every(50, end)])
  assert run.step == run.updates == report.step == report.last_step == 8
  assert end == [8]
  if kind != 'arrays':  # ordered, so the steps can be taken one by one
    same = trainer(pipelines[kind], strategy, log_every=100)
    reports = [same.train(n) for n in range(1, 9)]
    assert reports[-1].step == 8
    expected = cases.state_of(same)
    ours = cases.state_of(run)
    for name in ('trainer/means', 'trainer/last_logged', 'trainer/ended'):
      expected.pop(name), ours.pop(name)
    cases.assert_same_bits(ours, expected)


def test_one_epoch_sees_each_example_once_and_epochs_differ():
  index = np.arange(67)
  data = tftrain.Arrays((index, index), 8)
  batches = iter(data.dataset(seed=4))
  rows = np.concatenate([next(batches)[0].numpy() for _ in range(17)])
  first, second = rows[:67], rows[67:134]
  assert sorted(first) == sorted(second) == list(index)
  assert list(first) != list(second)
  assert list(first) != list(index)
  resumed = next(iter(data.dataset(seed=4, start_step=9)))[0].numpy()
  np.testing.assert_array_equal(resumed, rows[72:80])
  in_graph = data.batch(4, tf.constant(9, tf.int64))[0].numpy()
  np.testing.assert_array_equal(in_graph, rows[72:80])
  other = next(iter(data.dataset(seed=5)))[0].numpy()
  assert list(other) != list(rows[:8])


def test_steps_gives_the_same_run_in_the_users_own_loop(tmp_path):
  mine, theirs = trainer(log_every=20), trainer(log_every=20)
  checkpointer = tftrain.Checkpointer(tmp_path, mine)
  seen = []
  for report in mine.steps(70, [tftrain.Every(30, checkpointer)]):
    assert 'loss' in report.scalars
    seen.append(report.step)
  theirs.train(70)
  assert seen == [20, 40, 60, 70]
  cases.assert_same_bits(cases.state_of(mine), cases.state_of(theirs))
  assert checkpointer.steps() == [30, 60, 70]


def test_an_action_may_stop_the_run_and_what_is_due_fires_once_more():
  run = trainer(log_every=10)
  steps, plain, last = Steps(), Steps(), Steps()

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


def test_early_stopping_waits_for_its_patience():
  stop = tftrain.EarlyStopping('eval/test/loss', patience=2)
  values = [3.0, 2.0, 2.5, 2.1, 1.0]
  signals = []
  for step, value in enumerate(values):
    report = cases.report(
      step, source='eval/test', last_step=9, scalars={'loss': value}
    )
    signals.append(stop(report))
  assert signals == [None, None, None, tftrain.Signal.STOP, None]


def test_every_by_the_clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(every_lib.time, 'monotonic', lambda: now[0])
  steps = Steps()
  every = tftrain.Every('10m', steps)
  for step in range(1, 8):
    now[0] += 240
    every(cases.report(step, last_step=7))
  assert steps == [3, 6, 7]


def test_a_stop_leaves_a_long_block_within_a_step():
  run = trainer(steps_per_loop=10_000_000, log_every=10_000_000)
  run.train(1)
  threading.Timer(0.5, run.request_stop).start()
  begun = time.monotonic()
  run.train(10_000_000)
  assert time.monotonic() - begun < 20
  assert 1 < run.step < 10_000_000
  assert not run.is_done(10_000_000)


def test_sigterm_saves_and_the_same_call_resumes(tmp_path):
  def experiment(steps):
    return tftrain.Experiment(
      lambda: cases.supervised(dropout=0.2),
      lambda: tftrain.Arrays(cases.arrays(), 8),
      lambda: tftrain.Arrays(cases.arrays(seed=3), 8, training=False),
      steps=steps,
      steps_per_loop=steps,
      log_every=steps,
      eval_every=steps,
      checkpoint_every=steps,
      export=False,
    )

  steps = 2_500
  run = experiment(steps).prepare(tmp_path / 'stopped')

  def stop_inside_the_loop():
    while run.trainer.updates < 300:
      time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop_inside_the_loop, daemon=True).start()
  before = signal.getsignal(signal.SIGTERM)
  result = run.train()
  assert signal.getsignal(signal.SIGTERM) is before
  assert result.exit_code == 143
  assert 0 < result.step < steps
  assert run.checkpointer.steps() == [result.step]
  assert not (tmp_path / 'stopped' / 'metrics.jsonl').exists()
  resumed = experiment(steps).prepare(tmp_path / 'stopped')
  assert resumed.train().exit_code == 0
  whole = experiment(steps).prepare(tmp_path / 'whole')
  whole.train()
  cases.assert_same_bits(
    cases.state_of(resumed.trainer), cases.state_of(whole.trainer)
  )
  assert (tmp_path / 'stopped' / 'metrics.jsonl').read_bytes() == (
    tmp_path / 'whole' / 'metrics.jsonl'
  ).read_bytes()


def test_an_evaluation_leaves_training_metrics_untouched():
  def make():
    return cases.supervised(
      metrics={'keras': keras.metrics.SparseCategoricalAccuracy()}
    )

  scalars = []
  for evaluate in (False, True):
    keras.utils.set_random_seed(2)
    run = tftrain.Trainer(make(), tftrain.Arrays(cases.arrays(), 8))
    data = tftrain.Arrays(cases.arrays(seed=9), 8, training=False)
    evaluator = tftrain.Evaluator(run.task, data)
    also = [tftrain.Every(7, evaluator)] if evaluate else []
    scalars.append(run.train(40, also).scalars)
  assert scalars[0] == scalars[1]
  assert scalars[0]['keras'] == pytest.approx(scalars[0]['accuracy'])


class Collatz(tftrain.Task):
  """Data-dependent control flow in a loss, as AutoGraph compiles it."""

  def loss(self, batch, training):
    x, _ = batch
    total = tf.zeros([])
    for row in x:
      if tf.reduce_sum(row) > 0:
        total += tf.reduce_sum(row)
      n = 0
      while n < 3:
        total += 1.0
        n += 1
    values = self.model(x, training=training)[:, 0] ** 2
    return tftrain.Loss(values, total=tf.fill([len(x)], total))


def test_autograph_compiles_what_the_user_wrote():
  x, y = cases.arrays(examples=8)
  task = Collatz(cases.model(), keras.optimizers.SGD(0.0))
  run = tftrain.Trainer(task, [(x, y)])
  report = run.train(3)
  sums = x.sum(-1)
  expected = sums[sums > 0].sum() + 3 * 8
  assert report.scalars['total'] == pytest.approx(expected, rel=1e-5)


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
        cases.model(),
        cases.model(),
        {
          'first': keras.optimizers.SGD(0.01),
          'second': keras.optimizers.Adam(0.01),
        },
      )
    data = tftrain.Arrays(cases.arrays(), 8)
    run = tftrain.Trainer(task, data, strategy=strategy)
    before = cases.state_of(run)
    run.train(20)
    states.append(cases.state_of(run))
  assert any((before[k] != states[1][k]).any() for k in before if 'first' in k)
  cases.assert_close(states[0], states[1], 1e-5)


def test_a_stop_during_an_evaluation_loses_no_line(tmp_path):
  x, y = cases.arrays(seed=3)
  calls, run = [], None

  def batches():
    for start in range(0, 64, 8):
      calls.append(start)
      if len(calls) == 12 and run is not None:
        run.trainer.request_stop()
        time.sleep(0.5)
      yield x[start : start + 8], y[start : start + 8]

  class Data:
    def __iter__(self):
      return batches()

  def experiment():
    return tftrain.Experiment(
      lambda: cases.supervised(dropout=0.2),
      lambda: tftrain.Arrays(cases.arrays(), 8),
      Data,
      steps=60,
      log_every=20,
      eval_every=20,
      checkpoint_every=20,
      export=False,
    )

  whole = experiment().prepare(tmp_path / 'whole')
  whole.train()
  calls.clear()
  run = experiment().prepare(tmp_path / 'stopped')
  calls.clear()
  result = run.train()
  assert result.step == 40
  stopped = (tmp_path / 'stopped' / 'metrics.jsonl').read_text()
  assert stopped.count('eval/test') == 1
  run = None
  resumed = experiment().prepare(tmp_path / 'stopped')
  resumed.train()
  assert (tmp_path / 'stopped' / 'metrics.jsonl').read_text() == (
    tmp_path / 'whole' / 'metrics.jsonl'
  ).read_text()
  cases.assert_same_bits(
    cases.state_of(resumed.trainer), cases.state_of(whole.trainer)
  )


def test_speed_does_not_count_what_actions_take():
  run = trainer(log_every=50)
  run.train(50)
  report = run.train(100, [tftrain.Every(10, lambda _: time.sleep(0.3))])
  assert report.seconds < 1.0  # five Actions slept 1.5 s


def pair_trainer(make):
  names = ('first', 'second')
  optimizers = {name: keras.optimizers.SGD(0.01) for name in names}
  task = make(cases.model(), cases.model(), optimizers)
  return tftrain.Trainer(task, tftrain.Arrays(cases.arrays(), 8))


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


@pytest.mark.parametrize(
  'stop_at',
  [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 8, 12, 20, 30))],
)
def test_a_stop_at_any_step_loses_no_line_and_no_evaluation(stop_at, tmp_path):
  def prepare(name):
    return tftrain.Experiment(
      lambda: cases.supervised(dropout=0.2),
      lambda: tftrain.Arrays(cases.arrays(), 8),
      lambda: tftrain.Arrays(cases.arrays(seed=3), 8, training=False),
      steps=30,
      steps_per_loop=4,
      log_every=10,
      eval_every=10,
      checkpoint_every=10,
      export=False,
    ).prepare(tmp_path / name)

  whole = prepare('whole')
  whole.train()
  run = prepare('stopped')
  # As if the signal came within the last step of the block.
  block = run.trainer._block

  def stop_in_block(until):
    result = block(min(until, stop_at) if run.trainer.step < stop_at else until)
    if run.trainer.step == stop_at:
      run.trainer.request_stop()
    return result

  run.trainer._block = stop_in_block
  assert run.train().step == stop_at
  resumed = prepare('stopped')
  resumed.train()
  assert (tmp_path / 'stopped' / 'metrics.jsonl').read_text() == (
    tmp_path / 'whole' / 'metrics.jsonl'
  ).read_text()
  cases.assert_same_bits(
    cases.state_of(resumed.trainer), cases.state_of(whole.trainer)
  )
  assert prepare('stopped').train().already_done


def test_a_stop_before_the_first_step_is_not_forgotten(tmp_path):
  run = trainer()
  run.request_stop()
  assert run.train(100) is None
  assert run.step == 0
  run.train(3)  # asked again, it goes on
  assert run.step == 3


def test_a_run_that_ended_early_stays_ended(tmp_path):
  def train(steps=100):
    return tftrain.Experiment(
      cases.supervised,
      lambda: tftrain.Arrays(cases.arrays(), 8),
      steps=steps,
      log_every=5,
      export=False,
      actions=[lambda r: tftrain.Signal.STOP if r.step >= 15 else None],
    ).train(tmp_path)

  assert train().step == 15
  again = train()
  assert again.step == 15 and again.already_done
  (tmp_path / 'run.json').unlink()  # as if killed before it was written
  assert train().already_done
  assert train(200).step == 20  # more was asked for


@pytest.mark.slow
def test_an_experiment_may_run_twice(tmp_path):
  fired = Steps()
  experiment = tftrain.Experiment(
    cases.supervised,
    lambda: tftrain.Arrays(cases.arrays(), 8),
    steps=10,
    log_every=5,
    export=False,
    actions=[tftrain.Every(1000, fired)],
  )
  experiment.train(tmp_path / 'a')
  experiment.train(tmp_path / 'b')
  assert fired == [10, 10]


def test_a_task_may_have_a_second_trainer():
  first = trainer()
  first.train(5)
  second = tftrain.Trainer(first.task, tftrain.Arrays(cases.arrays(), 4))
  second.train(5)
  assert second.step == 5


def test_a_stop_in_the_users_own_loop_is_saved(tmp_path):
  run = trainer(log_every=10)
  checkpointer = tftrain.Checkpointer(tmp_path, run)
  for report in run.steps(100, [tftrain.Every(50, checkpointer)]):
    if report.step == 20:
      run.request_stop()
  assert run.step == 20
  assert checkpointer.steps() == [20]


def test_a_stop_beside_an_interrupted_evaluation_is_remembered(tmp_path):
  def prepare():
    run = trainer(log_every=10)
    done = Steps()

    def evaluate(report):
      if report.step == 10 and not done.resumed:
        run.request_stop()
        return tftrain.Signal.INTERRUPTED
      return done(report)

    checkpointer = tftrain.Checkpointer(tmp_path, run)
    actions = [
      lambda r: tftrain.Signal.STOP if r.step == 10 else None,
      tftrain.Every(10, evaluate),
      tftrain.Every(50, checkpointer),
    ]
    done.resumed = checkpointer.restore() is not None
    return run, done, actions

  run, done, actions = prepare()
  run.train(100, actions)
  assert run.step == 10 and done == []
  run, done, actions = prepare()
  run.train(100, actions)
  assert run.step == 10 and done == [10]

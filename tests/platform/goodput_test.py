"""Goodput: every second of a run is booked once, in its place."""

import time

import keras
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.platform import goodput


class Clock:
  """A clock that moves when it is told to, for exact sums."""

  CLOCK_BOOTTIME = None

  def __init__(self):
    self.now = 1000.0

  def time(self):
    return self.now

  perf_counter = time

  def pass_by(self, seconds):
    self.now += seconds


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(goodput, 'time', clock)
  return clock


class Slow(tftrain.SupervisedTask):
  """Takes its time wherever a Task is called."""

  def __init__(self, clock, parts):
    keras.utils.set_random_seed(0)
    super().__init__(
      small_tasks.model(),
      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      keras.optimizers.SGD(0.1),
    )
    self._clock, self._parts, self._built = clock, parts, False
    self._pass_by('start_up')

  def _pass_by(self, part):
    self._clock.pass_by(self._parts.get(part, 0.0))

  def train_step(self, batch):
    if self.is_built:
      self._pass_by('compile')
      tf.numpy_function(lambda: self._pass_by('step'), [], [])
    return super().train_step(batch)

  def eval_step(self, batch):
    if not tf.executing_eagerly():
      tf.numpy_function(lambda: self._pass_by('evaluation'), [], [])
    return super().eval_step(batch)

  def artifacts(self, batch):
    return {'text': 'seen'}


def experiment(clock, parts, **options):
  def act(report):
    clock.pass_by(parts.get('actions', 0.0))

  return tftrain.Experiment(
    lambda: Slow(clock, parts),
    lambda: tftrain.Arrays(small_tasks.arrays(64), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(16), 8, training=False),
    **{
      'steps': 20,
      'log_every': 10,
      'eval_every': 10,
      'checkpoint_every': 10,
      'export': False,
      'actions': [act],
      **options,
    },
  )


def folded(seconds):
  """What waits for input is part of the steps: a real clock measures it."""
  waited = seconds['input_wait']
  return {**seconds, 'step': seconds['step'] + waited, 'input_wait': 0.0}


# Seconds of one event, and how often it happens in 20 steps.
_PARTS = {
  'start_up': (3.0, 1),
  'compile': (5.0, 1),
  'step': (0.25, 20),
  'evaluation': (0.5, 4),
  'actions': (2.0, 2),
}


@pytest.mark.parametrize('part', _PARTS)
def test_what_takes_time_is_booked_where_it_belongs(part, clock, tmp_path):
  seconds, times = _PARTS[part]
  result = experiment(clock, {part: seconds}).train(tmp_path)
  expected = dict.fromkeys(goodput.PARTS, 0.0) | {part: seconds * times}
  assert folded(result.seconds) == pytest.approx(expected)


@pytest.mark.slow
def test_what_writes_is_booked_where_it_belongs(clock, tmp_path, monkeypatch):
  from tftrain.actions import exporter as exporter_lib
  from tftrain.checkpoint import checkpointer as checkpointer_lib
  from tftrain.summary import metrics_file as metrics_file_lib

  def slow(owner, name, seconds):
    method = getattr(owner, name)

    def slowly(*args, **kwargs):
      clock.pass_by(seconds)
      return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, slowly)

  slow(checkpointer_lib.Checkpointer, 'save', 1.0)  # twice
  slow(
    metrics_file_lib.MetricsFile, '__call__', 0.1
  )  # four times, two evaluations
  slow(exporter_lib.Exporter, 'export', 7.0)
  result = experiment(clock, {}, export=True).train(tmp_path)
  expected = dict.fromkeys(goodput.PARTS, 0.0)
  expected.update(checkpoint=2.0, summaries=0.4, export=7.0)
  assert folded(result.seconds) == pytest.approx(expected)


def test_waiting_for_input_is_no_step(tmp_path):
  def slowly():
    x, y = small_tasks.arrays(8)
    for _ in range(20):
      time.sleep(0.05)
      yield x, y

  def data():
    return tf.data.Dataset.from_generator(
      slowly,
      output_signature=(
        tf.TensorSpec([8, 6], tf.float32),
        tf.TensorSpec([8], tf.int64),
      ),
    )

  task = small_tasks.supervised(keras.optimizers.SGD(0.1))
  trainer = tftrain.Trainer(task, data, log_every=5)
  begun = time.monotonic()
  trainer.train(20)
  passed = time.monotonic() - begun
  found = trainer.ledger.read()
  # The first batches are made while the loop is compiled.
  assert 0.7 < found['input_wait'] < passed - found['compile']


def test_all_parts_make_up_the_time_that_passed(clock):
  begun = clock.now
  ledger = goodput.Ledger(begun - 2.0)
  with ledger.part('step'):
    clock.pass_by(0.05)
    with ledger.part('summaries'):
      clock.pass_by(0.1)
    ledger.move(0.01, 'step', 'input_wait')
  seconds = ledger.read()
  assert sum(seconds.values()) == pytest.approx(clock.now - begun + 2)
  assert seconds['summaries'] == pytest.approx(0.1)


def test_lives_add_up_and_what_was_lost_is_said(clock, tmp_path):
  begun = clock.now
  first = experiment(clock, {'step': 0.5}, steps=20).prepare(tmp_path)
  first.trainer.train(10, first._actions)
  first.checkpointer.wait()
  clock.pass_by(60.0)  # nobody trains
  second = experiment(clock, {'step': 0.5}, steps=20).train(tmp_path)
  assert folded(second.seconds)['step'] == pytest.approx(10.0)
  assert second.seconds['lost_to_restart'] == 60.0
  assert sum(second.seconds.values()) == pytest.approx(clock.now - begun)


def test_a_run_that_had_ended_lost_nothing(clock, tmp_path):
  begun = clock.now
  experiment(clock, {'step': 0.5}, steps=10).train(tmp_path)
  clock.pass_by(3600.0)  # nobody wants more yet
  result = experiment(clock, {'step': 0.5}, steps=20).train(tmp_path)
  assert folded(result.seconds)['step'] == pytest.approx(10.0)
  assert result.seconds['lost_to_restart'] == 0.0
  assert sum(result.seconds.values()) == pytest.approx(
    clock.now - begun - 3600.0, abs=0.01
  )


def test_a_life_without_a_checkpoint_is_lost(clock, tmp_path):
  begun = clock.now

  def fail(report):
    clock.pass_by(4.0)
    raise KeyboardInterrupt  # nothing is saved

  with pytest.raises(KeyboardInterrupt):
    experiment(clock, {'step': 0.5}, actions=[fail]).train(tmp_path)
  result = experiment(clock, {'step': 0.5}).train(tmp_path)
  assert result.seconds['lost_to_restart'] == 5.0 + 4.0
  assert sum(result.seconds.values()) == pytest.approx(clock.now - begun)


def test_going_back_loses_the_time_since(clock):
  ledger = goodput.Ledger()
  with ledger.part('step'):
    clock.pass_by(3.0)
    saved = ledger.read_state()
    clock.pass_by(2.0)
    ledger.write_state(saved)
    clock.pass_by(1.0)
  seconds = ledger.read()
  assert (seconds['step'], seconds['lost_to_restart']) == (4.0, 2.0)


def test_a_clock_that_was_set_back_takes_nothing_away(clock):
  ledger = goodput.Ledger()
  clock.pass_by(10.0)
  saved = ledger.read_state()
  clock.pass_by(-100.0)
  other = goodput.Ledger(clock.now)
  other.write_state(saved)
  assert other.read()['lost_to_restart'] == 0.0
  assert other.read()['start_up'] == 10.0


def test_the_table_ends_with_a_verdict():
  zeros = dict.fromkeys(goodput.PARTS, 0.0)
  calm = goodput.table({**zeros, 'step': 95.0, 'export': 5.0})
  assert calm.splitlines()[-1] == '95% of the time went into steps.'
  hungry = {**zeros, 'step': 59.0, 'input_wait': 41.0}
  assert goodput.waits_for_input(hungry)
  assert goodput.table(hungry, 'the map stage is the slowest: cache').endswith(
    '41% of the time waits for input; the map stage is the slowest: cache.'
  )
  slow = goodput.table({**zeros, 'step': 1.0, 'checkpoint': 1.0})
  assert slow.endswith(
    '50% of the time is checkpoint; save less often, or on a faster disk.'
  )


def test_a_process_knows_when_it_began():
  assert 0 < time.time() - goodput.process_start() < 24 * 3600

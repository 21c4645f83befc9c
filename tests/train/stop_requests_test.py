"""Stop requests: a stopped run resumes and loses no line."""

import os
import signal
import threading
import time

import pytest

from tests.support import loop_runs
from tests.support import small_tasks
import tftrain


def test_a_stop_leaves_a_long_block_within_a_step():
  run = loop_runs.trainer(steps_per_loop=10_000_000, log_every=10_000_000)
  run.train(1)
  threading.Timer(0.5, run.request_stop).start()
  run.train(10_000_000)
  assert 1 < run.step < 10_000_000
  assert not run.is_done(10_000_000)


def test_sigterm_saves_and_the_same_call_resumes(tmp_path):
  def experiment(steps):
    return tftrain.Experiment(
      lambda: small_tasks.supervised(dropout=0.2),
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
      lambda: tftrain.Arrays(small_tasks.arrays(seed=3), 8, training=False),
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
  small_tasks.assert_same_bits(
    small_tasks.state_of(resumed.trainer), small_tasks.state_of(whole.trainer)
  )
  assert (tmp_path / 'stopped' / 'metrics.jsonl').read_bytes() == (
    tmp_path / 'whole' / 'metrics.jsonl'
  ).read_bytes()


@pytest.mark.slow
def test_a_stop_during_an_evaluation_loses_no_line(tmp_path):
  x, y = small_tasks.arrays(seed=3)
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
      lambda: small_tasks.supervised(dropout=0.2),
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
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
  small_tasks.assert_same_bits(
    small_tasks.state_of(resumed.trainer), small_tasks.state_of(whole.trainer)
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'stop_at',
  [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 8, 12, 20, 30))],
)
def test_a_stop_at_any_step_loses_no_line_and_no_evaluation(stop_at, tmp_path):
  def prepare(name):
    return tftrain.Experiment(
      lambda: small_tasks.supervised(dropout=0.2),
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
      lambda: tftrain.Arrays(small_tasks.arrays(seed=3), 8, training=False),
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
  block = run.trainer._take_block

  def stop_in_block(until):
    result = block(min(until, stop_at) if run.trainer.step < stop_at else until)
    if run.trainer.step == stop_at:
      run.trainer.request_stop()
    return result

  run.trainer._take_block = stop_in_block
  assert run.train().step == stop_at
  resumed = prepare('stopped')
  resumed.train()
  assert (tmp_path / 'stopped' / 'metrics.jsonl').read_text() == (
    tmp_path / 'whole' / 'metrics.jsonl'
  ).read_text()
  small_tasks.assert_same_bits(
    small_tasks.state_of(resumed.trainer), small_tasks.state_of(whole.trainer)
  )
  assert prepare('stopped').train().already_done


def test_a_stop_before_the_first_step_is_not_forgotten(tmp_path):
  run = loop_runs.trainer()
  run.request_stop()
  assert run.train(100) is None
  assert run.step == 0
  run.train(3)  # asked again, it goes on
  assert run.step == 3


def test_a_run_that_ended_early_stays_ended(tmp_path):
  def train(steps=100):
    return tftrain.Experiment(
      small_tasks.supervised,
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
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


def test_a_stop_in_the_users_own_loop_is_saved(tmp_path):
  run = loop_runs.trainer(log_every=10)
  checkpointer = tftrain.Checkpointer(tmp_path, run)
  for report in run.steps(100, [tftrain.Every(50, checkpointer)]):
    if report.step == 20:
      run.request_stop()
  assert run.step == 20
  assert checkpointer.steps() == [20]


def test_a_stop_beside_an_interrupted_evaluation_is_remembered(tmp_path):
  def prepare():
    run = loop_runs.trainer(log_every=10)
    done = loop_runs.Steps()

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

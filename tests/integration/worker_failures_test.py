"""Failures on several workers: kills, restarts, rewinds and infinities."""

import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
import tensorflow as tf

from tests.support import worker_processes

_LONG = '--gin.Experiment.steps=1000000'


@pytest.mark.slow
def test_a_rewind_with_summaries_in_the_step(commands, tmp_path):
  """The chief compiles the loop again, for its new writer; others do not."""
  bindings = worker_processes.bind(
    'Experiment.train_data = @Examples',
    'Examples.source = @recipes.bad_row()',
    'Examples.batch_size = 8',
    'make_normalized_task.kind = @recipes.shown_kind()',
    'Experiment.rewind = @Rewind()',
    'Rewind.skip_batches = 3',
  )
  ended = worker_processes.Team(commands, tmp_path, *bindings).wait()
  worker_processes.assert_ended(ended, 0, 0)
  assert 'Done: step 40' in ended[0].stdout
  assert 'passing over steps' in ended[0].stderr
  assert worker_processes.lines(tmp_path)[-1]['step'] == 40
  events = plugin_event_accumulator.EventAccumulator(
    str(tmp_path / 'run' / 'train')
  )
  events.Reload()
  steps = [event.step for event in events.Tensors('shown')]
  assert 40 in steps


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['mixed_float16', 'mixed_bfloat16'])
def test_an_infinity_on_one_worker_is_seen_by_all(
  commands, tmp_path, precision
):
  bindings = worker_processes.bind(
    'Experiment.train_data = @Examples',
    'Examples.source = @recipes.bad_row()',
    'Examples.batch_size = 8',
    'Examples.shuffle = 0',
    'recipes.bad_row.value = 1e999',
    'Experiment.task = @recipes.make_task',  # no norm that spreads it
    f'Experiment.precision = "{precision}"',
    'Experiment.update = @Update()',
    'Update.max_skips = 2',
  )
  one, two = tmp_path / 'one', tmp_path / 'two'
  for directory in (one, two):
    directory.mkdir()
  ended = worker_processes.alone(
    commands, one, '--local_devices=2', '--strategy=mirrored', *bindings
  )
  assert ended.code == 0, ended.stderr
  worker_processes.assert_ended(
    worker_processes.Team(commands, two, *bindings).wait(), 0, 0
  )
  assert worker_processes.last_state(two)['trainer/skipped_steps'] == 1
  worker_processes.assert_same_metrics(
    worker_processes.lines(two), worker_processes.lines(one)
  )


@pytest.mark.slow
def test_early_stopping_ends_all_at_one_step(commands, tmp_path):
  bindings = worker_processes.bind(
    'Experiment.early_stop = @EarlyStopping()',
    'EarlyStopping.metric = "eval/test/loss"',
    'EarlyStopping.patience = 1',
    'EarlyStopping.min_delta = 1e9',
  )
  ended = worker_processes.Team(commands, tmp_path, _LONG, *bindings).wait()
  worker_processes.assert_ended(ended, 0, 0)
  assert 'Done: step 40' in ended[0].stdout


@pytest.mark.slow
def test_clocks_are_the_chiefs_alone(commands, tmp_path):
  bindings = worker_processes.bind(
    'Experiment.checkpoint_every = "1s"',
    'Experiment.eval_every = "1s"',
    'Experiment.max_time = "25s"',
  )
  ended = worker_processes.Team(commands, tmp_path, _LONG, *bindings).wait()
  worker_processes.assert_ended(ended, 143, 143)
  assert len(worker_processes.saved_steps(tmp_path)) >= 3
  sources = [line['source'] for line in worker_processes.lines(tmp_path)]
  assert sources.count('eval/test') >= 2


@pytest.mark.slow
def test_the_chief_dies_within_a_save_and_nothing_is_lost(commands, tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  wide = worker_processes.bind('make_normalized_task.width = 200000')
  for directory in (whole, broken):
    directory.mkdir()
  worker_processes.assert_ended(
    worker_processes.Team(commands, whole, *wide).wait(), 0, 0
  )
  team = worker_processes.Team(commands, broken, *wide)
  checkpoints = team.model_dir / 'checkpoints'
  team.chief.until(lambda: list(checkpoints.glob('.tmp-ckpt-*')), 'a save')
  team.chief.send('SIGKILL')
  ended = team.wait()
  worker_processes.assert_ended(ended, -signal.SIGKILL, 1)
  assert ended[1].error.startswith('worker 0 (127.0.0.1:')
  assert worker_processes.saved_steps(broken) in ([], [20])
  worker_processes.assert_ended(
    worker_processes.Team(commands, broken, *wide).wait(), 0, 0
  )
  assert_same_run(broken, whole)


@pytest.mark.slow
def test_what_fails_on_the_chief_ends_all(commands, tmp_path):
  bindings = worker_processes.bind(
    'Experiment.actions = [@recipes.breaking_action()]'
  )
  ended = worker_processes.Team(commands, tmp_path, *bindings).wait()
  assert ended[0].code != 0 and 'No space left' in ended[0].stderr
  assert ended[1].code == 1
  assert 'worker 0 (127.0.0.1:' in ended[1].error
  assert 'failed; see its log' in ended[1].error
  assert worker_processes.saved_steps(tmp_path) == [20, 30]


def assert_same_run(one, other):
  """To the bit."""
  assert worker_processes.lines(one) == worker_processes.lines(other)
  mine, theirs = (
    worker_processes.last_state(one),
    worker_processes.last_state(other),
  )
  assert mine.keys() == theirs.keys()
  for name, value in mine.items():
    assert value.tobytes() == theirs[name].tobytes(), name


@pytest.mark.slow
def test_started_again_after_a_kill_it_ends_as_if_nothing_had_been(
  commands, tmp_path
):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  steps = '--gin.Experiment.steps=400'
  worker_processes.assert_ended(
    worker_processes.Team(commands, whole, steps).wait(), 0, 0
  )
  with started(broken, steps, '--max_restarts=1') as starter:
    wait_for_step(30, starter, broken)
    os.kill(workers_of(starter.pid)[1], signal.SIGKILL)
    assert starter.wait(timeout=90) == 0, text_of(broken)
  assert 'starting all again (1 of 1)' in text_of(broken)
  assert_same_run(broken, whole)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_again_and_again_wherever_they_are_they_end_as_never_killed(
  commands, tmp_path
):
  """While they start, meet, connect, train, evaluate and save."""
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  options = worker_processes.bind(
    'Experiment.steps = 4000',
    'Experiment.log_every = 200',
    'Experiment.eval_every = 1000',
    'Experiment.checkpoint_every = 200',
  )
  worker_processes.assert_ended(
    worker_processes.Team(commands, whole, *options).wait(), 0, 0
  )
  draw = random.Random(0)
  with started(broken, *options, '--max_restarts=99') as starter:
    for _ in range(8):
      time.sleep(draw.uniform(0.5, 12))
      number = draw.randrange(2)
      for victim in workers_of(starter.pid)[number : number + 1]:
        with contextlib.suppress(ProcessLookupError):
          os.kill(victim, signal.SIGKILL)
    assert starter.wait(timeout=200) == 0, text_of(broken)
  assert text_of(broken).count('starting all again') >= 3
  assert_same_run(broken, whole)


@pytest.mark.slow
def test_who_dies_of_four_is_named(tmp_path):
  flags = [_LONG, '--gin.Experiment.log_every=100', '--local_workers=4']
  with started(tmp_path, *flags) as starter:
    wait_for_step(300, starter, tmp_path)
    os.kill(workers_of(starter.pid)[2], signal.SIGKILL)
    assert starter.wait(timeout=60) == 128 + signal.SIGKILL
  # Another may be the first that it misses: the chief, which ends for that.
  named = re.findall(r'error: worker (\d) \(\S+\) is gone', text_of(tmp_path))
  assert 1 <= len(named) <= 3
  assert named.count('2') > len(named) / 2


@contextlib.contextmanager
def started(directory, *arguments):
  """As a user starts it: one command that starts all of them."""
  command = [
    sys.executable, '-m', 'tftrain', *worker_processes.command(directory),
    '--local_workers=2', *arguments,
  ]  # fmt: skip
  environment = {
    **os.environ,
    'PYTHONPATH': os.getcwd(),
    'TFTRAIN_CLUSTER_DEADLINE': '20',
  }
  with (directory / 'log').open('w') as log:
    starter = subprocess.Popen(command, stderr=log, env=environment)
  try:
    yield starter
  finally:
    starter.terminate()
    starter.wait()


def wait_for_step(step, starter, directory):
  deadline = time.monotonic() + 120
  while not worker_processes.has_reported(directory / 'run', step):
    assert time.monotonic() < deadline
    assert starter.poll() is None, text_of(directory)
    time.sleep(0.002)


def text_of(directory):
  return (directory / 'log').read_text()


def workers_of(pid):
  """The processes that a starter has started, by their number."""
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return sorted(map(int, path.read_text().split()))


@pytest.mark.slow
def test_the_chief_exports(commands, tmp_path):
  """The whole of it: histograms, digests, an export that is compared."""
  bindings = worker_processes.bind(
    'Experiment.export = True',
    'Experiment.actions = [@Digests(), @WeightHistograms()]',
    'Digests.every = 20',
    'WeightHistograms.every = 20',
  )
  ended = worker_processes.Team(commands, tmp_path, *bindings).wait()
  worker_processes.assert_ended(ended, 0, 0)
  exported = tf.saved_model.load(str(tmp_path / 'run' / 'export' / '40'))
  assert exported.signatures

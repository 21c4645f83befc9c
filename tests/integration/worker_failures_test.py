"""What ends a block, breaks or is written, on several real workers."""

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

from tests import teams

_LONG = '--gin.Experiment.steps=1000000'


def bind(*bindings):
  return [f'--gin.{b.replace(" = ", "=")}' for b in bindings]


@pytest.mark.slow
@pytest.mark.parametrize('eagerly', [False, True])
@pytest.mark.parametrize('batches', ['(25, 33)', '(33, 25)'])
def test_data_that_end_for_one_end_for_all(
  commands, tmp_path, batches, eagerly
):
  data = bind(
    'Experiment.train_data = @recipes.uneven_data',
    f'recipes.uneven_data.batches = {batches}',
  )
  flags = ['--run_eagerly'] if eagerly else []
  ended = teams.Team(commands, tmp_path, *data, *flags).wait()
  teams.assert_ended(ended, 0, 0)
  assert 'Done: step 25' in ended[0].stdout
  assert [l['step'] for l in teams.lines(tmp_path)][-1] == 25
  assert teams.saved_steps(tmp_path) == [20, 25]


@pytest.mark.slow
def test_an_evaluation_of_uneven_data_ends_for_all(commands, tmp_path):
  data = bind(
    'Experiment.eval_data = @recipes.uneven_data',
    'recipes.uneven_data.batches = (4, 6)',
  )
  ended = teams.Team(commands, tmp_path, *data).wait()
  teams.assert_ended(ended, 0, 0)


@pytest.mark.parametrize(
  ('what', 'training'),
  [('its data', True), ("the data of evaluation 'test'", False)],
)
def test_other_data_are_refused(commands, tmp_path, what, training):
  kind = 'train_data' if training else 'eval_data'
  data = bind(
    f'Experiment.{kind} = @recipes.other_data',
    f'recipes.other_data.training = {training}',
    'recipes.other_data.examples = (67, 66)',
  )
  ended = teams.Team(commands, tmp_path, *data).wait()
  teams.assert_ended(ended, 2, 2)
  for e in ended:
    assert e.error.startswith('worker 1 (127.0.0.1:')
    assert f'differs from worker 0 in {what}' in e.error
  assert not (tmp_path / 'run').exists()


def test_data_made_before_the_strategy_are_refused(commands, tmp_path):
  data = bind('Experiment.eval_data = @recipes.uneven_data()')
  ended = teams.Team(commands, tmp_path, *data).wait()
  teams.assert_ended(ended, 2, 2)
  for e in ended:
    assert 'comes too late: TensorFlow has started' in e.error
    assert 'eval_data = @name, without parentheses' in e.error


@pytest.mark.slow
def test_a_rewind_with_summaries_in_the_step(commands, tmp_path):
  """The chief compiles the loop again, for its new writer; others do not."""
  bindings = bind(
    'Experiment.train_data = @Examples',
    'Examples.source = @recipes.bad_row()',
    'Examples.batch_size = 8',
    'make_normalized_task.kind = @recipes.shown_kind()',
    'Experiment.rewind = @Rewind()',
    'Rewind.skip_batches = 3',
  )
  ended = teams.Team(commands, tmp_path, *bindings).wait()
  teams.assert_ended(ended, 0, 0)
  assert 'Done: step 40' in ended[0].stdout
  assert 'passing over steps' in ended[0].stderr
  assert teams.lines(tmp_path)[-1]['step'] == 40
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
  bindings = bind(
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
  ended = teams.alone(
    commands, one, '--local_devices=2', '--strategy=mirrored', *bindings
  )
  assert ended.code == 0, ended.stderr
  teams.assert_ended(teams.Team(commands, two, *bindings).wait(), 0, 0)
  assert teams.last_state(two)['trainer/skipped_steps'] == 1
  teams.assert_same_metrics(teams.lines(two), teams.lines(one))


@pytest.mark.slow
def test_early_stopping_ends_all_at_one_step(commands, tmp_path):
  bindings = bind(
    'Experiment.early_stop = @EarlyStopping()',
    'EarlyStopping.metric = "eval/test/loss"',
    'EarlyStopping.patience = 1',
    'EarlyStopping.min_delta = 1e9',
  )
  ended = teams.Team(commands, tmp_path, _LONG, *bindings).wait()
  teams.assert_ended(ended, 0, 0)
  assert 'Done: step 40' in ended[0].stdout


@pytest.mark.slow
def test_clocks_are_the_chiefs_alone(commands, tmp_path):
  bindings = bind(
    'Experiment.checkpoint_every = "1s"',
    'Experiment.eval_every = "1s"',
    'Experiment.max_time = "8s"',
  )
  ended = teams.Team(commands, tmp_path, _LONG, *bindings).wait()
  teams.assert_ended(ended, 143, 143)
  assert len(teams.saved_steps(tmp_path)) >= 3
  sources = [line['source'] for line in teams.lines(tmp_path)]
  assert sources.count('eval/test') >= 2


@pytest.mark.slow
def test_the_chief_dies_within_a_save_and_nothing_is_lost(commands, tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  wide = bind('make_normalized_task.width = 200000')
  for directory in (whole, broken):
    directory.mkdir()
  teams.assert_ended(teams.Team(commands, whole, *wide).wait(), 0, 0)
  team = teams.Team(commands, broken, *wide)
  checkpoints = team.model_dir / 'checkpoints'
  team.chief.until(lambda: list(checkpoints.glob('.tmp-ckpt-*')), 'a save')
  team.chief.send('SIGKILL')
  ended = team.wait()
  teams.assert_ended(ended, -signal.SIGKILL, 1)
  assert ended[1].error.startswith('worker 0 (127.0.0.1:')
  assert teams.saved_steps(broken) in ([], [20])
  teams.assert_ended(teams.Team(commands, broken, *wide).wait(), 0, 0)
  assert_same_run(broken, whole)


@pytest.mark.slow
def test_what_fails_on_the_chief_ends_all(commands, tmp_path):
  bindings = bind('Experiment.actions = [@recipes.breaking_action()]')
  ended = teams.Team(commands, tmp_path, *bindings).wait()
  assert ended[0].code != 0 and 'No space left' in ended[0].stderr
  assert ended[1].code == 1
  assert 'worker 0 (127.0.0.1:' in ended[1].error
  assert 'failed; see its log' in ended[1].error
  assert teams.saved_steps(tmp_path) == [20, 30]


@pytest.mark.slow
def test_data_that_break_on_one_worker_end_all(commands, tmp_path):
  bindings = bind('Experiment.train_data = @recipes.breaking_data')
  ended = teams.Team(commands, tmp_path, *bindings).wait()
  teams.assert_ended(ended, 1, 2)
  assert 'worker 1 (127.0.0.1:' in ended[0].error
  assert 'the disk is gone' in ended[1].error


def assert_same_run(one, other):
  """To the bit."""
  assert teams.lines(one) == teams.lines(other)
  mine, theirs = teams.last_state(one), teams.last_state(other)
  assert mine.keys() == theirs.keys()
  for name, value in mine.items():
    assert value.tobytes() == theirs[name].tobytes(), name


@pytest.mark.slow
def test_started_again_after_a_kill_it_ends_as_if_nothing_had_been(
  commands, tmp_path
):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  steps = '--gin.Experiment.steps=400'
  teams.assert_ended(teams.Team(commands, whole, steps).wait(), 0, 0)
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
  options = bind(
    'Experiment.steps = 8000',
    'Experiment.log_every = 200',
    'Experiment.eval_every = 1000',
    'Experiment.checkpoint_every = 200',
  )
  teams.assert_ended(teams.Team(commands, whole, *options).wait(), 0, 0)
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
    began = time.monotonic()
    os.kill(workers_of(starter.pid)[2], signal.SIGKILL)
    assert starter.wait(timeout=60) == 128 + signal.SIGKILL
  assert time.monotonic() - began < 30
  # Another may be the first that it misses: the chief, which ends for that.
  named = re.findall(r'error: worker (\d) \(\S+\) is gone', text_of(tmp_path))
  assert 1 <= len(named) <= 3
  assert named.count('2') > len(named) / 2


@contextlib.contextmanager
def started(directory, *arguments):
  """As a user starts it: one command that starts all of them."""
  command = [
    sys.executable, '-m', 'tftrain', *teams.command(directory),
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
  while not teams.has_reported(directory / 'run', step):
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
  bindings = bind(
    'Experiment.export = True',
    'Experiment.actions = [@Digests(), @WeightHistograms()]',
    'Digests.every = 20',
    'WeightHistograms.every = 20',
  )
  ended = teams.Team(commands, tmp_path, *bindings).wait()
  teams.assert_ended(ended, 0, 0)
  exported = tf.saved_model.load(str(tmp_path / 'run' / 'export' / '40'))
  assert exported.signatures

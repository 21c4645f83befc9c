"""A run on a model_dir: signals, time limits, failing actions and restarts."""

import json
import os
import signal
import tempfile
import threading
import time

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator

from tests.support import error_lines
from tests.support import loop_runs
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.checkpoint import format
from tftrain.platform import files


def test_an_unwritable_model_dir(tmp_path):
  (tmp_path / 'file').write_text('')
  experiment = tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    steps=2,
  )
  with error_lines.refused(
    errors.RunDirectoryError, 'Not a directory', 'model_dir'
  ):
    experiment.train(tmp_path / 'file' / 'run')
  # Root may write anywhere, so be somebody else, in a place he can reach.
  with tempfile.TemporaryDirectory() as directory:
    os.chmod(directory, 0o555)
    user = os.geteuid()
    try:
      if user == 0:
        os.seteuid(65534)
      with error_lines.refused(
        errors.RunDirectoryError, 'cannot write to', 'denied'
      ):
        experiment.train(f'{directory}/run')
    finally:
      os.seteuid(user)


@pytest.mark.slow
def test_an_experiment_may_run_twice(tmp_path):
  fired = loop_runs.Steps()
  experiment = tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    steps=10,
    log_every=5,
    export=False,
    actions=[tftrain.Every(1000, fired)],
  )
  experiment.train(tmp_path / 'a')
  experiment.train(tmp_path / 'b')
  assert fired == [10, 10]


def experiment(**options):
  options = {'steps': 60, 'checkpoint_every': 20, 'log_every': 5, **options}
  return tftrain.Experiment(
    lambda: small_tasks.supervised(dropout=0.2),
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    steps_per_loop=50,
    export=False,
    keep=9,
    **options,
  )


def at(step, do):
  """An Action that does something once, at a step."""
  return tftrain.Every(
    step, lambda report: do() if report.step == step else None
  )


def train(model_dir, **options):
  """Trains; what ends up in the last checkpoint and in metrics.jsonl."""
  experiment(**options).train(model_dir)
  path = format.checkpoint_path(model_dir / 'checkpoints', 60)
  state = format.read_checkpoint(path)[1]
  return state, (model_dir / 'metrics.jsonl').read_text()


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  return train(tmp_path_factory.mktemp('unbroken'))


def assert_same(one, other):
  small_tasks.assert_same_bits(one[0], other[0])
  assert one[1] == other[1]


def test_a_save_that_is_asked_for_changes_nothing_else(unbroken, tmp_path):
  run = experiment().prepare(tmp_path)
  run._actions = (at(13, run.trainer.request_save), *run._actions)
  run.train()
  assert [step for step in run.checkpointer.steps() if step % 20] in (
    [13],
    [14],
  )
  assert_same(train(tmp_path), unbroken)


def test_a_signal_saves_within_a_long_block_and_the_run_goes_on(tmp_path):
  trainer = tftrain.Trainer(
    small_tasks.supervised(),
    tftrain.Arrays(small_tasks.arrays(), 8),
    steps_per_loop=10**7,
    log_every=10**8,
  )
  checkpointer = tftrain.Checkpointer(tmp_path, trainer)

  def ask():
    os.kill(os.getpid(), signal.SIGUSR1)
    for _ in range(200):
      if checkpointer.steps():
        break
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

  trainer.train(5)
  with tftrain.platform.stop_on_signal(
    trainer.request_stop, trainer.request_save
  ) as stopper:
    threading.Timer(0.2, ask).start()
    trainer.train(10**7, [tftrain.Every(10**6, checkpointer)])
  assert stopper.exit_code == 143
  first, *_, last = checkpointer.steps()
  assert 5 < first < last == trainer.step


@pytest.mark.slow
def test_a_run_that_is_out_of_time_is_resumed(unbroken, tmp_path):
  def slow(report):
    del report
    time.sleep(0.1)

  result = experiment(max_time='4s', actions=[tftrain.Every(1, slow)]).train(
    tmp_path
  )
  assert result.exit_code == 143
  assert 0 < result.step < 60
  assert_same(train(tmp_path), unbroken)


def test_an_action_that_fails_costs_no_step(unbroken, tmp_path):
  def fail():
    raise RuntimeError('out of paper')

  with pytest.raises(RuntimeError, match='out of paper'):
    experiment(actions=[at(33, fail)]).train(tmp_path)
  assert format.committed_steps(tmp_path / 'checkpoints') == [20, 33]
  assert_same(train(tmp_path), unbroken)


def points(directory):
  """(tag, step) of all that TensorBoard would show of a directory."""
  events = plugin_event_accumulator.EventAccumulator(str(directory))
  events.Reload()
  return [
    (tag, event.step)
    for tag in events.PluginTagToContent('scalars')
    if tag == 'loss'
    for event in events.Tensors(tag)
  ]


@pytest.mark.parametrize(
  'clock',
  [-3600, *(pytest.param(c, marks=pytest.mark.slow) for c in (0, 3600))],
)
def test_each_step_is_on_the_charts_once(clock, tmp_path, monkeypatch):
  run = experiment(eval_data=_eval_data).prepare(tmp_path)

  def die():
    run.checkpointer.wait()  # what was asked for is saved; then nothing more
    raise KeyboardInterrupt

  run._actions = (*run._actions, at(35, die))
  with pytest.raises(KeyboardInterrupt):
    run.train()
  assert format.committed_steps(tmp_path / 'checkpoints') == [20]
  now = time.time
  monkeypatch.setattr(time, 'time', lambda: now() + clock)
  experiment(eval_data=_eval_data).train(tmp_path)
  wanted = [('loss', step) for step in range(5, 61, 5)]
  assert points(tmp_path / 'train') == wanted
  assert points(tmp_path / 'eval' / 'test') == [('loss', 60)]
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == [*range(5, 61, 5), 60]


def _eval_data():
  return tftrain.Arrays(small_tasks.arrays(seed=5), 16, training=False)


@pytest.mark.parametrize(
  'name',
  [
    '',
    '.',
    '..',
    'a/b',
    '../a',
    '/a',
    '.a',
    '-a',
    'a\0',
    'a\n',
    'ä',
    'x' * 101,
  ],
)
def test_names_that_leave_their_directory_are_refused(name):
  with pytest.raises(errors.ConfigError, match='cannot name a directory'):
    files.check_name(name, 'the name')
  with pytest.raises(errors.ConfigError, match='eval_data: the name'):
    experiment(eval_data={name: _eval_data})

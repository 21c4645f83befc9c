"""Several worker processes, real ones, against one process."""

import json
import signal
import time

import pytest

from tests.support import worker_processes


@pytest.fixture(scope='module')
def reference(commands, tmp_path_factory):
  """What one process with two devices makes of it."""
  directory = tmp_path_factory.mktemp('reference')
  ended = worker_processes.alone(
    commands, directory, '--local_devices=2', '--strategy=mirrored'
  )
  assert ended.code == 0, ended.stderr
  return worker_processes.lines(directory)


@pytest.mark.slow
def test_two_workers_are_two_devices(commands, tmp_path, reference):
  ended = worker_processes.Team(commands, tmp_path).wait()
  worker_processes.assert_ended(ended, 0, 0)
  worker_processes.assert_same_metrics(
    worker_processes.lines(tmp_path), reference
  )
  assert 'Done: step 40' in ended[0].stdout
  assert ended[1].stdout == ''
  record = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert [life['replicas'] for life in record['attempts']] == [2]


@pytest.mark.slow
def test_another_number_of_workers_goes_on(commands, tmp_path, reference):
  short = '--gin.Experiment.steps=20'
  ended = worker_processes.Team(commands, tmp_path, short).wait()
  worker_processes.assert_ended(ended, 0, 0)
  one = worker_processes.alone(commands, tmp_path, '--gin.Experiment.steps=30')
  assert one.code == 0, one.stderr
  assert 'Resumed from step 20' in one.stderr
  ended = worker_processes.Team(commands, tmp_path).wait()
  assert 'Resumed from step 30' in ended[0].stderr
  worker_processes.assert_ended(ended, 0, 0)
  found = [
    line
    for line in worker_processes.lines(tmp_path)
    if line['source'] == 'train'
  ]
  worker_processes.assert_same_metrics(
    found, [line for line in reference if line['source'] == 'train']
  )


@pytest.mark.slow
@pytest.mark.parametrize('who', ['chief', 'other'])
def test_a_stop_of_one_stops_all_at_one_step(commands, tmp_path, who):
  team = worker_processes.Team(
    commands, tmp_path, '--gin.Experiment.steps=1000000'
  )
  team.until_step(10)
  getattr(team, who).send('SIGTERM')
  ended = team.wait()
  worker_processes.assert_ended(ended, 143, 143)
  assert 'Stopped at step' in ended[0].stdout
  saved = worker_processes.saved_steps(tmp_path)
  step = int(ended[0].stdout.split('step ')[1].split()[0].replace(',', ''))
  assert saved[-1] == step
  again = worker_processes.Team(
    commands, tmp_path, f'--gin.Experiment.steps={step + 5}'
  ).wait()
  worker_processes.assert_ended(again, 0, 0)
  assert f'Resumed from step {step:,}' in again[0].stderr


@pytest.mark.parametrize(
  'who', [pytest.param('chief', marks=pytest.mark.slow), 'other']
)
def test_who_is_left_behind_ends_and_says_why(commands, tmp_path, who):
  team = worker_processes.Team(
    commands, tmp_path, '--gin.Experiment.steps=1000000'
  )
  team.until_step(10)
  victim = getattr(team, who)
  left = team.other if who == 'chief' else team.chief
  victim.send('SIGKILL')
  began = time.monotonic()
  ended = left.wait()
  assert time.monotonic() - began < 60
  assert victim.wait().code == -signal.SIGKILL
  assert ended.code == 1
  number = 0 if who == 'chief' else 1
  assert ended.error.startswith(f'worker {number} (127.0.0.1:')
  assert 'is gone' in ended.error


@pytest.mark.parametrize(
  ('binding', 'what'),
  [
    ('Experiment.seed=3', 'seed, configuration'),
    ('recipes.train_data.batch_size=16', 'configuration'),
  ],
)
def test_workers_that_differ_are_refused(commands, tmp_path, binding, what):
  ended = worker_processes.Team(
    commands, tmp_path, others=[f'--gin.{binding}']
  ).wait()
  worker_processes.assert_ended(ended, 2, 2)
  for e in ended:
    assert e.error.startswith('worker 1 (127.0.0.1:')
    assert f'differs from worker 0 in {what};' in e.error
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all(commands, tmp_path):
  ended = worker_processes.Team(
    commands, tmp_path, '--gin.make_normalized_task.rate=1e30'
  ).wait()
  worker_processes.assert_ended(ended, 1, 1)
  assert 'step ' in ended[0].error
  assert ended[1].error.startswith('worker 0 (127.0.0.1:')


@pytest.mark.slow
def test_a_save_that_one_is_asked_for_is_made_by_the_chief(commands, tmp_path):
  team = worker_processes.Team(
    commands, tmp_path, '--gin.Experiment.steps=1000000',
    '--gin.Experiment.checkpoint_every=10000000',
  )  # fmt: skip
  team.until_step(10)
  team.other.send('SIGUSR1')
  team.chief.until(lambda: worker_processes.saved_steps(tmp_path), 'the save')
  step = worker_processes.saved_steps(tmp_path)[0]
  team.until_step((step // 10 + 3) * 10)
  assert worker_processes.saved_steps(tmp_path) == [step]
  team.chief.send('SIGINT')
  worker_processes.assert_ended(team.wait(), 130, 130)


@pytest.mark.slow
def test_one_worker_does_alone_what_is_no_training(commands, tmp_path):
  assert worker_processes.alone(commands, tmp_path).code == 0
  ended = worker_processes.Team(commands, tmp_path, '--mode=eval').wait()
  worker_processes.assert_ended(ended, 0, 0)
  assert 'Evaluated the checkpoint of step 40' in ended[0].stdout
  assert ended[1].stdout == ''


def test_a_tpu_that_is_not_there_is_one_line(commands, tmp_path):
  ended = worker_processes.alone(commands, tmp_path, '--strategy=tpu')
  assert ended.code == 2
  assert 'the TPU of this machine cannot be reached' in ended.error

"""Several worker processes, real ones, against one process."""

import json
import signal
import time

import pytest

from tftrain import bundles
from tftrain import localworkers

_GIN = """
import tests.recipes

Experiment.task = @recipes.make_normalized_task
Experiment.train_data = @recipes.train_data
Experiment.eval_data = @recipes.test_data
Experiment.steps = 40
Experiment.log_every = 10
Experiment.eval_every = 20
Experiment.checkpoint_every = 20
Experiment.keep = 9
Experiment.export = False
"""


class Team:
  """Two workers on one model_dir."""

  def __init__(self, commands, directory, *arguments, others=()):
    (directory / 'a.gin').write_text(_GIN)
    self.model_dir = directory / 'run'
    workers = f'--workers={",".join(localworkers.free_addresses(2))}'
    common = [
      f'--gin_file={directory}/a.gin', f'--model_dir={self.model_dir}',
      workers, *arguments,
    ]  # fmt: skip
    self.chief = commands.start(*common, '--task=0')
    self.other = commands.start(*common, '--task=1', *others)

  def wait(self):
    """Both have to be waited for, whatever becomes of the first."""
    return self.chief.wait(), self.other.wait()

  def until_step(self, step):
    path = self.model_dir / 'metrics.jsonl'
    self.chief.until(
      lambda: path.exists() and f'"step": {step},' in path.read_text(),
      f'step {step}',
    )


def alone(commands, directory, *arguments, **options):
  (directory / 'a.gin').write_text(_GIN)
  return commands.run(
    f'--gin_file={directory}/a.gin', f'--model_dir={directory}/run',
    *arguments, **options,
  )  # fmt: skip


def lines(directory):
  text = (directory / 'run' / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def assert_same_metrics(one, other):
  assert len(one) == len(other)
  for mine, theirs in zip(one, other, strict=True):
    assert mine.pop('source') == theirs['source']
    expected = {k: v for k, v in theirs.items() if k != 'source'}
    assert mine == pytest.approx(expected, abs=1e-6, rel=2e-6)


@pytest.fixture(scope='module')
def reference(commands, tmp_path_factory):
  """What one process with two devices makes of it."""
  directory = tmp_path_factory.mktemp('reference')
  ended = alone(commands, directory, '--local_devices=2', '--strategy=mirrored')
  assert ended.code == 0, ended.stderr
  return lines(directory)


@pytest.mark.slow
def test_two_workers_are_two_devices(commands, tmp_path, reference):
  ended = Team(commands, tmp_path).wait()
  assert [e.code for e in ended] == [0, 0], ended[0].stderr + ended[1].stderr
  assert_same_metrics(lines(tmp_path), reference)
  assert 'Done: step 40' in ended[0].stdout
  assert ended[1].stdout == ''
  record = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert [life['replicas'] for life in record['lives']] == [2]


@pytest.mark.slow
def test_another_number_of_workers_goes_on(commands, tmp_path, reference):
  short = '--gin.Experiment.steps=20'
  ended = Team(commands, tmp_path, short).wait()
  assert [e.code for e in ended] == [0, 0], ended[0].stderr + ended[1].stderr
  one = alone(commands, tmp_path, '--gin.Experiment.steps=30')
  assert one.code == 0, one.stderr
  assert 'Resumed from step 20' in one.stderr
  ended = Team(commands, tmp_path).wait()
  assert 'Resumed from step 30' in ended[0].stderr
  assert [e.code for e in ended] == [0, 0], ended[0].stderr + ended[1].stderr
  found = [line for line in lines(tmp_path) if line['source'] == 'train']
  assert_same_metrics(
    found, [line for line in reference if line['source'] == 'train']
  )


@pytest.mark.slow
@pytest.mark.parametrize('who', ['chief', 'other'])
def test_a_stop_of_one_stops_all_at_one_step(commands, tmp_path, who):
  team = Team(commands, tmp_path, '--gin.Experiment.steps=1000000')
  team.until_step(10)
  getattr(team, who).send('SIGTERM')
  ended = team.wait()
  assert [e.code for e in ended] == [143, 143], ended[0].stderr
  assert 'Stopped at step' in ended[0].stdout
  saved = bundles.committed_steps(tmp_path / 'run' / 'checkpoints')
  step = int(ended[0].stdout.split('step ')[1].split()[0].replace(',', ''))
  assert saved[-1] == step
  again = Team(commands, tmp_path, f'--gin.Experiment.steps={step + 5}').wait()
  assert [e.code for e in again] == [0, 0], again[0].stderr
  assert f'Resumed from step {step:,}' in again[0].stderr


@pytest.mark.parametrize(
  'who', [pytest.param('chief', marks=pytest.mark.slow), 'other']
)
def test_who_is_left_behind_ends_and_says_why(commands, tmp_path, who):
  team = Team(commands, tmp_path, '--gin.Experiment.steps=1000000')
  team.until_step(10)
  victim = getattr(team, who)
  left = team.other if who == 'chief' else team.chief
  victim.send('SIGKILL')
  began = time.monotonic()
  ended = left.wait()
  assert time.monotonic() - began < 30
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
  ended = Team(commands, tmp_path, others=[f'--gin.{binding}']).wait()
  assert [e.code for e in ended] == [2, 2]
  for e in ended:
    assert e.error.startswith('worker 1 (127.0.0.1:')
    assert f'differs from worker 0 in {what};' in e.error
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all(commands, tmp_path):
  ended = Team(
    commands, tmp_path, '--gin.make_normalized_task.rate=1e30'
  ).wait()
  assert [e.code for e in ended] == [1, 1]
  assert 'step ' in ended[0].error
  assert ended[1].error.startswith('worker 0 (127.0.0.1:')


@pytest.mark.slow
def test_a_save_that_one_is_asked_for_is_made_by_the_chief(commands, tmp_path):
  team = Team(
    commands, tmp_path, '--gin.Experiment.steps=1000000',
    '--gin.Experiment.checkpoint_every=10000000',
  )  # fmt: skip
  team.until_step(10)
  team.other.send('SIGUSR1')
  checkpoints = team.model_dir / 'checkpoints'
  team.chief.until(lambda: bundles.committed_steps(checkpoints), 'the save')
  step = bundles.committed_steps(checkpoints)[0]
  team.until_step((step // 10 + 3) * 10)
  assert bundles.committed_steps(checkpoints) == [step]
  team.chief.send('SIGINT')
  assert [e.code for e in team.wait()] == [130, 130]


@pytest.mark.slow
def test_one_worker_does_alone_what_is_no_training(commands, tmp_path):
  assert alone(commands, tmp_path).code == 0
  ended = Team(commands, tmp_path, '--mode=eval').wait()
  assert [e.code for e in ended] == [0, 0], ended[0].stderr
  assert 'Evaluated the checkpoint of step 40' in ended[0].stdout
  assert ended[1].stdout == ''


def test_a_tpu_that_is_not_there_is_one_line(commands, tmp_path):
  ended = alone(commands, tmp_path, '--strategy=tpu')
  assert ended.code == 2
  assert 'the TPU of this machine cannot be reached' in ended.error

"""Disks that are full, small, read-only, or no disks."""

import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import pytest

from tests.faults import lives
from tests.support import small_tasks

pytestmark = pytest.mark.slow

_NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path):
  """A real file system of 600 KB."""
  directory = tmp_path / 'disk'
  directory.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', str(directory)]
  done = subprocess.run(mount, capture_output=True, text=True, check=False)
  if done.returncode:
    pytest.skip(f'a disk cannot be mounted here: {done.stderr.strip()}')
  yield directory
  subprocess.run(['umount', '-l', str(directory)], check=True)


def test_a_disk_that_is_too_small_is_said_before_step_1(run, small_disk):
  ended = run.live(
    'mishaps.make_task.width = 1500', model_dir=small_disk / 'run'
  )
  assert ended.code == 2
  assert 'more checkpoints of 0.' in ended.error
  assert f'{small_disk}/run/checkpoints has 0.' in ended.error
  assert not (small_disk / 'run' / 'metrics.jsonl').exists()


def test_a_disk_that_fills_up_ends_the_run_and_the_next_goes_on(
  commands, run, quiet, small_disk
):
  there = lives.Run(commands, small_disk)
  life = there.started_until(25)
  with open(small_disk / 'big', 'wb', buffering=0) as big:
    try:
      while True:
        big.write(b'0' * 4096)
    except OSError:
      pass
  ended = life.wait()
  assert ended.code == 2
  assert 'saving step' in ended.error
  assert 'No space left on device' in ended.error
  (small_disk / 'big').unlink()
  there.finish()
  assert there.end() == quiet
  assert there.leftovers() == []


def test_a_save_that_fails_beside_training_ends_the_run(run, quiet):
  """The disk takes the lines of metrics, and no file as large as a bundle."""
  ended = run.live(file_limit=5500)
  assert ended.code == 2
  assert f'saving step 10 to {run.checkpoints} failed: ' in ended.error
  assert 'there is no good checkpoint yet' in ended.error
  assert run.steps() == [] and run.leftovers() == []
  run.finish()
  assert run.end() == quiet


def test_saves_may_fail_for_a_while(run):
  ended = run.live('Experiment.max_failed_saves = 3', file_limit=5500)
  assert ended.code == 2
  assert ended.stderr.count('going on without') == 3
  assert 'saving step 40' in ended.error


def test_summaries_that_cannot_be_written_cost_no_step(run, tmp_path):
  """Events are all that grows so large."""
  often = 'Experiment.log_every = 1'
  other = run.another(tmp_path / 'other')
  other.finish(often)
  ended = run.finish(often, file_limit=20_000)
  assert 'cannot be written' in ended.stderr
  assert 'training goes on without them' in ended.stderr
  assert run.end() == other.end()


def test_predictions_on_a_full_disk_go_on_when_there_is_room(run, tmp_path):
  run.finish()
  x, _ = small_tasks.arrays(600)
  np.save(tmp_path / 'x.npy', x)

  def predict(name, **rights):
    flags = ['--mode=predict', f'--input={tmp_path / "x.npy"}']
    output = tmp_path / name
    return output, run.live(flags=[*flags, f'--output={output}'], **rights)

  whole, ended = predict('whole.jsonl')
  assert ended.code == 0, ended.stderr
  output, ended = predict('a.jsonl', file_limit=8000)
  assert ended.code == 2
  assert 'No space left on device' in ended.error
  assert not output.exists()
  output, ended = predict('a.jsonl')
  assert ended.code == 0, ended.stderr
  assert output.read_bytes() == whole.read_bytes()


def test_a_directory_that_may_not_be_written_is_said_before_step_1(run):
  with tempfile.TemporaryDirectory() as directory:
    there = pathlib.Path(directory)
    shutil.copy(run.directory / 'recipe.gin', there)
    (there / 'run').mkdir()
    os.chmod(there / 'run', 0o555)
    os.chmod(there, 0o755)
    run.directory = there
    uid = _NOBODY if os.geteuid() == 0 else None
    ended = run.live(model_dir=there / 'run', uid=uid)
  assert ended.code == 2
  assert f'cannot write to {there}/run: Permission denied' in ended.error


def test_a_model_dir_in_memory_is_as_good(commands, quiet):
  memory = pathlib.Path('/dev/shm')
  if not memory.is_dir():
    pytest.skip('there is no /dev/shm')
  with tempfile.TemporaryDirectory(dir=memory) as directory:
    run = lives.Run(commands, directory)
    run.killed_at(45)
    run.finish()
    assert run.end() == quiet


@pytest.mark.parametrize('address', ['gs://bucket/run', 's3://bucket/run'])
def test_an_object_store_is_refused(address, run, tmp_path):
  ended = run.live(model_dir=address, cwd=tmp_path)
  assert ended.code == 2
  assert f'model_dir {address!r} is no directory' in ended.error
  assert 'copy the export from there' in ended.error
  assert [path.name for path in tmp_path.iterdir()] == ['recipe.gin']

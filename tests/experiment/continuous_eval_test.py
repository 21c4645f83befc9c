"""Continuous evaluation: complete, once, whatever is removed."""

import json
import shutil

import pytest

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.checkpoint import format
from tftrain.platform import files
from tftrain.platform import lock


def experiment(steps=40):
  return tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(seed=5), 16, training=False),
    steps=steps,
    checkpoint_every=10,
    keep=9,
    export=False,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp('trained')
  experiment().train(directory, evaluate=False)
  return directory


@pytest.fixture
def run_dir(trained, tmp_path):
  return shutil.copytree(trained, tmp_path / 'run')


def follow(run_dir):
  return experiment().follow(run_dir, timeout=0.5).follow()


def lines(run_dir):
  text = (run_dir / 'eval_metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_every_checkpoint_is_evaluated_once(run_dir):
  assert follow(run_dir) == ([10, 20, 30, 40], 0)
  assert follow(run_dir) == ([], 0)
  assert [line['step'] for line in lines(run_dir)] == [10, 20, 30, 40]
  for line in lines(run_dir):
    alone = experiment().evaluate(run_dir, str(line['step'])).scalars
    assert alone['eval/test/loss'] == line['loss']


def test_what_was_missed_is_made_up_for(run_dir):
  follow(run_dir)
  path = run_dir / 'eval_metrics.jsonl'
  path.write_text(''.join(path.read_text().splitlines(True)[:2]))
  assert follow(run_dir) == ([30, 40], 0)
  assert [line['step'] for line in lines(run_dir)] == [10, 20, 30, 40]


def test_a_checkpoint_removed_while_it_is_read_is_passed_over(
  run_dir, monkeypatch
):
  read = format.read_checkpoint

  def removed(path):
    if path.name == 'ckpt-00000020':
      shutil.rmtree(path, ignore_errors=True)
    return read(path)

  monkeypatch.setattr(format, 'read_checkpoint', removed)
  assert follow(run_dir) == ([10, 30, 40], 0)


def test_a_damaged_checkpoint_is_passed_over(run_dir, caplog):
  data = run_dir / 'checkpoints' / 'ckpt-00000020' / 'state.index'
  data.write_bytes(b'')
  assert follow(run_dir) == ([10, 30, 40], 0)
  assert 'ckpt-00000020 is damaged' in caplog.text


def test_a_run_without_a_trainer_is_given_up(run_dir):
  run = json.loads((run_dir / 'run.json').read_text())
  (run_dir / 'run.json').write_text(json.dumps({**run, 'finished': None}))
  with pytest.raises(
    errors.RunDirectoryError, match=r'nobody has trained.*0\.5'
  ):
    follow(run_dir)
  assert [line['step'] for line in lines(run_dir)] == [10, 20, 30, 40]


def test_two_may_not_follow_one_run(run_dir):
  files.make_directory(run_dir / 'eval')
  with lock.lock(run_dir / 'eval'):
    with pytest.raises(errors.RunDirectoryError, match='in use by pid'):
      follow(run_dir)

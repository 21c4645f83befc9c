"""What is seen of a run afterwards: where it came from, where two differ."""

import hashlib
import json
import os
import subprocess
import time

import pytest

from tests import cases
import tftrain
from tftrain import provenance


def git(directory, *words):
  identity = ('-c', 'user.name=t', '-c', 'user.email=t@example.com')
  subprocess.run(
    ['git', *identity, *words],
    cwd=directory,
    check=True,
    capture_output=True,
    env={**os.environ, 'GIT_CONFIG_GLOBAL': os.devnull},
  )


@pytest.fixture
def repository(tmp_path):
  """A commit with one module in a repository."""
  root = tmp_path / 'repository'
  (root / 'below').mkdir(parents=True)
  git(root, 'init', '--quiet')
  (root / 'model.py').write_text('width = 8\n')
  git(root, 'add', '.')
  git(root, 'commit', '--quiet', '-m', 'one')
  return root


def test_code_is_a_commit_and_a_hash_of_what_was_changed(repository):
  clean = provenance.code(repository)
  assert len(clean['commit']) == 40
  assert clean['dirty'] is False and clean['diff_sha256'] is None
  (repository / 'model.py').write_text('width = 9\n')
  changed = provenance.code(repository)
  assert changed['dirty'] and changed['commit'] == clean['commit']
  assert len(changed['diff_sha256']) == 64
  assert provenance.code(repository / 'below') == changed
  (repository / 'model.py').write_text('width = 10\n')
  assert provenance.code(repository)['diff_sha256'] != changed['diff_sha256']
  (repository / 'model.py').write_text('width = 8\n')
  assert provenance.code(repository) == clean


def test_a_module_that_git_does_not_know_yet_is_a_change(repository):
  hashes = []
  for text in ('a = 1\n', 'a = 2\n'):
    (repository / 'new.py').write_text(text)
    (repository / 'notes.txt').write_text(text)
    found = provenance.code(repository)
    assert found['dirty']
    hashes.append(found['diff_sha256'])
  assert hashes[0] != hashes[1]
  (repository / 'new.py').unlink()  # a text beside the code is none
  assert provenance.code(repository)['dirty'] is False


def fake_git(tmp_path, monkeypatch, script):
  program = tmp_path / 'bin' / 'git'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\n{script}\n')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(program.parent), prepend=os.pathsep)


def test_what_git_cannot_say_is_left_out(tmp_path, monkeypatch, repository):
  assert provenance.code(tmp_path) is None  # no repository
  fake_git(tmp_path, monkeypatch, 'exit 128')
  assert provenance.code(repository) is None
  monkeypatch.setenv('PATH', str(tmp_path / 'nowhere'))
  assert provenance.code(repository) is None


def test_a_git_that_hangs_is_not_waited_for(tmp_path, monkeypatch, repository):
  fake_git(tmp_path, monkeypatch, 'sleep 30')
  begun = time.monotonic()
  assert provenance.code(repository, seconds=0.2) is None
  assert time.monotonic() - begun < 10  # its sleep holds the pipe for 30


def test_what_is_long_in_a_fingerprint_is_kept_as_its_digest():
  files = [[f'train-{i:05d}', 100] for i in range(50)]
  kept = provenance.data({'train': {'batch_size': 8, 'files': files}})
  digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
  assert kept == {'train': {'batch_size': 8, 'files': f'sha256:{digest}'}}


def train_data():
  return tftrain.Arrays(cases.arrays(), 8)


def test_data():
  return tftrain.Arrays(cases.arrays(seed=1), 8, training=False)


test_data.__test__ = False


def experiment(**changes):
  fields = {
    'task': cases.supervised,
    'train_data': train_data,
    'eval_data': test_data,
    'steps': 6,
    'log_every': 2,
    'eval_every': 3,
    'checkpoint_every': 3,
    'export': False,
    **changes,
  }
  return tftrain.Experiment(**fields)


def record(model_dir):
  return json.loads((model_dir / 'run.json').read_text())


def test_each_life_says_what_it_was_made_of(tmp_path, monkeypatch, repository):
  monkeypatch.chdir(repository)
  experiment(steps=2, seed=3).train(tmp_path / 'run')
  (repository / 'model.py').write_text('secret = 7\n')
  experiment(steps=4, seed=3).train(tmp_path / 'run')
  lives = record(tmp_path / 'run')['lives']
  assert [life['git']['dirty'] for life in lives] == [False, True]
  for life in lives:
    assert life['seed'] == 3 and life['replicas'] == 1
    assert set(life['data']) == {'train', 'eval/test'}
    assert life['data']['train']['batch_size'] == 8
    assert life['data']['train'] != life['data']['eval/test']
  assert 'secret' not in (tmp_path / 'run' / 'run.json').read_text()


def test_a_run_outside_of_a_repository_says_nothing_of_code(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  experiment(steps=1).train(tmp_path / 'run')
  assert 'git' not in record(tmp_path / 'run')['lives'][0]

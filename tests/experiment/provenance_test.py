"""Provenance: the commit, changes and data that each life of a run had."""

import hashlib
import json
import os
import pathlib
import subprocess
import time

import pytest

from tests.support import recorded_runs
from tftrain.experiment import run_record


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
  clean = run_record.code_version(repository)
  assert len(clean['commit']) == 40
  assert clean['dirty'] is False and clean['diff_sha256'] is None
  (repository / 'model.py').write_text('width = 9\n')
  changed = run_record.code_version(repository)
  assert changed['dirty'] and changed['commit'] == clean['commit']
  assert len(changed['diff_sha256']) == 64
  assert run_record.code_version(repository / 'below') == changed
  (repository / 'model.py').write_text('width = 10\n')
  assert (
    run_record.code_version(repository)['diff_sha256'] != changed['diff_sha256']
  )
  (repository / 'model.py').write_text('width = 8\n')
  assert run_record.code_version(repository) == clean


def test_a_module_that_git_does_not_know_yet_is_a_change(repository):
  hashes = []
  for text in ('a = 1\n', 'a = 2\n'):
    (repository / 'new.py').write_text(text)
    (repository / 'notes.txt').write_text(text)
    found = run_record.code_version(repository)
    assert found['dirty']
    hashes.append(found['diff_sha256'])
  assert hashes[0] != hashes[1]
  (repository / 'new.py').unlink()  # a text beside the code is none
  assert run_record.code_version(repository)['dirty'] is False


def fake_git(tmp_path, monkeypatch, script):
  program = tmp_path / 'bin' / 'git'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\n{script}\n')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(program.parent), prepend=os.pathsep)


def test_what_git_cannot_say_is_left_out(tmp_path, monkeypatch, repository):
  assert run_record.code_version(tmp_path) is None  # no repository
  fake_git(tmp_path, monkeypatch, 'exit 128')
  assert run_record.code_version(repository) is None
  monkeypatch.setenv('PATH', str(tmp_path / 'nowhere'))
  assert run_record.code_version(repository) is None


def is_alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


def test_a_git_that_hangs_is_not_waited_for(tmp_path, monkeypatch, repository):
  fake_git(tmp_path, monkeypatch, f'sleep 600 & echo $! > {tmp_path}/pid; wait')
  begun = time.monotonic()
  assert run_record.code_version(repository, seconds=1.0) is None
  assert time.monotonic() - begun < 60
  pid = int((tmp_path / 'pid').read_text())
  while time.monotonic() - begun < 60 and is_alive(pid):
    time.sleep(0.01)
  assert not is_alive(pid)  # what it started is gone too


def test_what_is_long_in_a_fingerprint_is_kept_as_its_digest():
  files = [[f'train-{i:05d}', 100] for i in range(50)]
  kept = run_record.data_fingerprints(
    {'train': {'batch_size': 8, 'files': files}}
  )
  digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
  assert kept == {'train': {'batch_size': 8, 'files': f'sha256:{digest}'}}


def test_each_life_says_what_it_was_made_of(tmp_path, monkeypatch, repository):
  monkeypatch.chdir(repository)
  recorded_runs.experiment(steps=2, seed=3).train(tmp_path / 'run')
  (repository / 'model.py').write_text('secret = 7\n')
  recorded_runs.experiment(steps=4, seed=3).train(tmp_path / 'run')
  lives = recorded_runs.record(tmp_path / 'run')['attempts']
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
  recorded_runs.experiment(steps=1).train(tmp_path / 'run')
  assert 'git' not in recorded_runs.record(tmp_path / 'run')['attempts'][0]

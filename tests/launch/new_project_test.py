"""python -m tftrain.launch.new_project: a project that trains at once."""

import os
import subprocess
import sys

import pytest

from tests.support import paths
from tftrain import errors
from tftrain.launch import new_project


def python(*arguments, cwd):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=200,
    check=False,
    env={
      **os.environ,
      'PYTHONPATH': str(paths.ROOT),
      'PYTHONDONTWRITEBYTECODE': '1',
    },
  )


@pytest.mark.slow
def test_a_new_project_trains(commands, tmp_path):
  made = python('-m', 'tftrain.launch.new_project', 'spirals', cwd=tmp_path)
  assert made.returncode == 0, made
  assert made.stdout.startswith('Made spirals/. Next:\n  cd spirals\n')
  project = tmp_path / 'spirals'
  names = {str(path.relative_to(project)) for path in project.rglob('*.*')}
  assert names == {
    'README.md',
    'spirals.gin',
    'spirals_test.py',
    'spirals/__init__.py',
    'spirals/data.py',
    'spirals/task.py',
  }
  assert [path.name for path in tmp_path.iterdir()] == ['spirals']
  ended = commands.run(
    '--gin_file=spirals.gin',
    f'--model_dir={tmp_path}/run',
    '--gin.Experiment.export=False',
    cwd=project,
  )
  assert ended.code == 0, ended
  (accuracy,) = [l for l in ended.stdout.splitlines() if 'accuracy' in l]
  assert float(accuracy.split()[1]) > 0.99


@pytest.mark.slow
def test_a_new_project_passes_its_test_and_is_formatted(tmp_path):
  assert (
    python(
      '-m', 'tftrain.launch.new_project', 'spirals', cwd=tmp_path
    ).returncode
    == 0
  )
  project = tmp_path / 'spirals'
  ended = python('-m', 'pytest', '-q', cwd=project)
  assert ended.returncode == 0 and '2 passed' in ended.stdout, ended
  settings = ['--isolated', '--config', 'indent-width=2', '--line-length=80']
  settings += ['--config', "format.quote-style='single'"]
  ended = python('-m', 'ruff', 'format', '--check', *settings, cwd=project)
  assert ended.returncode == 0, ended
  # It can fail: a task that does not learn is found.
  task = project / 'spirals' / 'task.py'
  task.write_text(task.read_text().replace('from_logits=True', 'name="x"'))
  ended = python('-m', 'pytest', '-q', cwd=project)
  assert ended.returncode == 1, ended


def test_what_is_there_is_left_alone(tmp_path):
  new_project.make('spirals', tmp_path)
  before = sorted(path.name for path in tmp_path.rglob('*'))
  (tmp_path / 'waves').write_text('mine')
  (tmp_path / 'gone').symlink_to(tmp_path / 'nowhere')
  for name in ('spirals', 'waves', 'gone'):
    with pytest.raises(errors.RunDirectoryError, match='there already; choose'):
      new_project.make(name, tmp_path)
  assert (tmp_path / 'waves').read_text() == 'mine'
  after = sorted(path.name for path in tmp_path.rglob('*'))
  assert after == sorted([*before, 'waves', 'gone'])


@pytest.mark.parametrize(
  'name', ['', '..', 'a/b', 'Spirals', '3d', 'a-b', 'a b', 'class', 'x' * 99]
)
def test_names_that_python_cannot_import_are_refused(name, tmp_path):
  with pytest.raises(errors.ConfigError, match='cannot name a project; give'):
    new_project.make(name, tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['json', 'keras', 'tftrain'])
def test_names_that_are_taken_are_refused(name, tmp_path):
  with pytest.raises(errors.ConfigError, match='Python has already; choose'):
    new_project.make(name, tmp_path)


def test_the_command_answers_in_one_line(capsys):
  assert new_project.main(['3d']) == 2
  assert capsys.readouterr().err.startswith("error: '3d' cannot name a project")
  for wrong in ([], ['a', 'b'], ['--help']):
    assert new_project.main(wrong) == 2
    assert capsys.readouterr().err.startswith(
      'usage: python -m tftrain.launch.new_project'
    )

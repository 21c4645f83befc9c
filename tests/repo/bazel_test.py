"""BUILD files as Bazel reads them, offline."""

import re
import shutil
import subprocess

import pytest

from tests.support import paths

_COPIED = ('benchmarks', 'configs', 'examples', 'tests', 'tftrain')

# rules_python itself would have to be downloaded; this Bazel brings the same
# rules along.
_DEFS = """
py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
"""
_WORKSPACE = """
workspace(name = "tftrain")
local_repository(name = "rules_python", path = "{rules}")
"""


@pytest.fixture(scope='module')
def bazel():
  """The path of a Bazel that reads WORKSPACE."""
  path = shutil.which('bazel')
  if path is None:
    pytest.skip('no bazel on PATH: apt-get install bazel-bootstrap')
  version = subprocess.run(
    [path, '--version'], capture_output=True, text=True, check=True
  ).stdout
  major = re.search(r'\d+', version)  # Debian's says "no_version"; it is 4
  if major and int(major[0]) > 6:
    pytest.skip(f'needs Bazel 4 to 6, which read WORKSPACE; found {version}')
  return path


@pytest.fixture(scope='module')
def query(bazel, tmp_path_factory):
  """Answers a `bazel query` in a copy of the repository."""
  base = tmp_path_factory.mktemp('bazel')
  (base / 'rules/python').mkdir(parents=True)
  (base / 'rules/WORKSPACE').touch()
  (base / 'rules/python/BUILD').touch()
  (base / 'rules/python/defs.bzl').write_text(_DEFS)
  workspace = base / 'workspace'
  workspace.mkdir()
  for name in _COPIED:
    shutil.copytree(
      paths.ROOT / name,
      workspace / name,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  shutil.copy(paths.ROOT / 'BUILD', workspace)
  (workspace / 'WORKSPACE').write_text(_WORKSPACE.format(rules=base / 'rules'))
  command = [bazel, f'--output_user_root={base / "output"}']

  def run(expression):
    result = subprocess.run(
      [*command, '--batch', 'query', expression],
      cwd=workspace,
      capture_output=True,
      text=True,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())

  return run


def _target(path):
  """The label that scripts/generate_build gives a Python file."""
  package = path.parent.relative_to(paths.ROOT).as_posix()
  return f'//{package}:{path.stem}'


def test_every_target_is_there(query):
  targets = query('//...')
  files = {
    _target(path)
    for tree in ('tests', 'tftrain')
    for path in (paths.ROOT / tree).rglob('*.py')
    if not path.stem.startswith('__')
  }
  assert '//tests/faults:sweep_test' in files
  rest = {'//:tftrain', '//:tftrain_lib', '//:data_command', '//:sweep_command'}
  assert not (files | rest) - targets


@pytest.mark.slow
def test_every_label_stands_for_something(query):
  """Bazel takes a mistyped label for a file until it builds."""
  labels = query(
    'labels(deps, //...) + labels(data, //...) + labels(srcs, //...)'
  )
  found = {
    label.removeprefix('//').replace(':', '/').removeprefix('/')
    for label in labels - query('//...')
  }
  assert '//tftrain:errors' in labels and 'tftrain/errors.py' in found
  assert not [path for path in found if not (paths.ROOT / path).is_file()]

"""Types: for users, and without ignored errors of ours."""

import re
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest

from tests.support import paths

_MAX_IGNORES = 20

_RIGHT = """
  import tftrain

  def make(task: tftrain.Task, x: object) -> int:
    trainer = tftrain.Trainer(task, x, steps_per_loop=10, log_every=5)
    return trainer.step
"""


def _run(*command, cwd):
  result = subprocess.run(
    list(map(str, command)), capture_output=True, text=True, cwd=cwd
  )
  return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel, built from a copy: setuptools builds in the source tree."""
  base = tmp_path_factory.mktemp('wheel')
  source = base / 'source'
  source.mkdir()
  for name in ('configs', 'examples', 'tftrain'):
    shutil.copytree(paths.ROOT / name, source / name)
  for name in ('LICENSE', 'pyproject.toml', 'setup.py'):
    shutil.copy(paths.ROOT / name, source)
  code, output = _run(
    *(sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '--quiet'),
    *('--no-build-isolation', '--wheel-dir', base),
    cwd=source,
  )
  assert code == 0, output
  (path,) = base.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def check(wheel, tmp_path_factory):
  """Runs mypy on a user's program, beside an installed tftrain."""
  base = tmp_path_factory.mktemp('user')
  version = f'python{sys.version_info[0]}.{sys.version_info[1]}'
  # mypy believes only py.typed packages that an interpreter has installed.
  code, output = _run(
    *(sys.executable, '-m', 'venv', '--without-pip', base / 'venv'), cwd=base
  )
  assert code == 0, output
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(base / 'venv/lib' / version / 'site-packages')

  def run(program):
    (base / 'program.py').write_text(textwrap.dedent(program))
    return _run(
      *(sys.executable, '-m', 'mypy', '--strict', 'program.py'),
      *('--python-executable', base / 'venv/bin/python'),
      cwd=base,
    )

  return run


@pytest.mark.slow
def test_wheel_holds_everything(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  expected = {'tftrain/py.typed'}
  for folder, pattern, inside in (
    ('tftrain', '*.py', 'tftrain'),
    ('configs', '*.gin', 'tftrain/bundled/configs'),
    ('examples', '*.py', 'tftrain/bundled/examples'),
  ):
    for path in (paths.ROOT / folder).rglob(pattern):
      expected.add(
        f'{inside}/{path.relative_to(paths.ROOT / folder).as_posix()}'
      )
  assert not expected - names


def test_a_right_program_passes(check):
  code, output = check(_RIGHT)
  assert code == 0, output


@pytest.mark.parametrize(
  ('right', 'wrong', 'message'),
  [
    ('steps_per_loop=10', 'steps_per_loop="10"', 'Argument "steps_per_loop"'),
    ('log_every=5', 'log_evry=5', '"log_evry" for "Trainer"'),
    ('tftrain.Trainer', 'tftrain.Trianer', '"Trianer"'),
    ('trainer.step\n', 'trainer.steps\n', 'expected "int"'),
  ],
)
def test_a_wrong_program_fails(check, right, wrong, message):
  assert right in _RIGHT
  code, output = check(_RIGHT.replace(right, wrong))
  assert code == 1 and message in output, output


def _faults(sources):
  """What is wrong with the `type: ignore` comments of some sources."""
  lines = [line for source in sources for line in source.splitlines()]
  ignores = [line for line in lines if re.search(r'#\s*type:\s*ignore', line)]
  faults = [
    line
    for line in ignores
    if not re.search(r'\S.*# type: ignore\[[a-z-]+\]', line)
  ]
  faults += [line for line in lines if re.match(r'\s*#\s*mypy:', line)]
  if len(ignores) > _MAX_IGNORES:
    faults.append(f'{len(ignores)} ignores; at most {_MAX_IGNORES}')
  return faults


def test_ignores_are_few_and_say_why():
  found = sorted((paths.ROOT / 'tftrain').rglob('*.py'))
  assert not _faults(path.read_text(encoding='utf-8') for path in found)


@pytest.mark.parametrize(
  'source',
  [
    'x = f()  # type: ignore',
    '# type: ignore[misc]',
    '# mypy: ignore-errors',
    'x = f()  # type: ignore[misc]\n' * (_MAX_IGNORES + 1),
  ],
)
def test_faulty_ignores_are_found(source):
  assert _faults([source])


def test_no_flag_of_strict_is_switched_off():
  text = (paths.ROOT / 'pyproject.toml').read_text(encoding='utf-8')
  section = text[text.index('[tool.mypy]') : text.index('[tool.pytest')]
  settings = re.findall(r'^(\w+) = ', section, re.MULTILINE)
  assert sorted(settings) == [
    'ignore_missing_imports', 'module', 'packages', 'strict'
  ]  # fmt: skip

"""The public names of `import tftrain`, opened lazily."""

import importlib
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import types

import pytest

from tests.support import paths
import tftrain

_DOOR = pathlib.Path(tftrain.__file__)


def _python(code):
  """What a fresh Python prints."""
  result = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    cwd=_DOOR.parent.parent,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def _modules_with_names():
  """Yields tftrain and those of its rooms that offer names."""
  yield tftrain
  for path in sorted(_DOOR.parent.rglob('__init__.pyi')):
    parts = path.parent.relative_to(_DOOR.parent.parent).parts
    if len(parts) > 1:
      yield importlib.import_module('.'.join(parts))


_PUBLIC = [
  (module.__name__, name)
  for module in _modules_with_names()
  for name in module.__all__
]


def test_the_top_level_has_the_names_of_the_tutorial():
  names = [n for n in tftrain.__all__ if n[0].isupper() or n == 'make_strategy']
  assert names == [
    'Action', 'Arrays', 'Checkpointer', 'EarlyStopping', 'Error', 'Evaluator',
    'Every', 'Experiment', 'Loss', 'Report', 'Signal', 'SupervisedTask', 'Task',
    'Trainer', 'Update', 'make_strategy',
  ]  # fmt: skip


def test_names_are_sorted():
  for module in _modules_with_names():
    assert module.__all__ == sorted(module.__all__)
    assert set(dir(module)) >= set(module.__all__)


@pytest.mark.parametrize(('module', 'name'), _PUBLIC)
def test_name_is_there_and_documented(module, name):
  value = getattr(importlib.import_module(module), name)
  # An alias such as Action has no docstring of its own.
  assert name == 'Action' or value.__doc__.strip()


_NAMED = re.compile(r'(?<![\w./-])tftrain((?:\.[A-Za-z]\w*)+)(?![\w/]|\.py)')
_IMPORTED = re.compile(r'from (tftrain[\w.]*) import (\w+)')


def _names_in(text):
  for found in _IMPORTED.finditer(text):
    yield f'{found[1]}.{found[2]}'
  for found in _NAMED.finditer(text):
    yield f'tftrain{found[1]}'


def _resolve(name):
  """Imports a dotted name; the first private or missing part is an error."""
  value, path = tftrain, 'tftrain'
  for part in name.split('.')[1:]:
    path += f'.{part}'
    assert not part.startswith('_') or part == '__version__', name
    if isinstance(value, types.ModuleType) and not hasattr(value, part):
      value = importlib.import_module(path)
    else:
      value = getattr(value, part)


_PAGES = ['README.md', 'CONTRIBUTING.md', 'docs/*.md', 'examples/**/*.py']
_NAMES = {
  name
  for pattern in _PAGES
  for path in paths.ROOT.glob(pattern)
  for name in _names_in(path.read_text(encoding='utf-8'))
}


def test_docs_name_something():
  assert 'tftrain.Trainer' in _NAMES and 'tftrain.summary.Table' in _NAMES


@pytest.mark.parametrize('name', sorted(_NAMES))
def test_what_the_docs_name_is_importable_as_written(name):
  _resolve(name)


@pytest.mark.parametrize('name', ['tftrain.Table', 'tftrain.data._cursor'])
def test_a_name_that_is_not_public_is_found(name):
  with pytest.raises((AttributeError, ImportError, AssertionError)):
    _resolve(name)


def test_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match='Trianer'):
    tftrain.Trianer  # noqa: B018


def test_importing_does_not_import_tensorflow():
  assert _python('import sys, tftrain; print("tensorflow" in sys.modules)') == (
    'False\n'
  )


def test_help_answers_without_tensorflow():
  shown = _python(
    'import sys\n'
    'from tftrain import launch\n'
    'code = launch.execute(["tftrain", "--help"])\n'
    'print(code, "tensorflow" in sys.modules)'
  )
  assert shown.endswith('0 False\n')
  assert '--gin_file' in shown and '--model_dir' in shown


def test_version_is_that_of_the_package():
  try:
    installed = importlib.metadata.version('tftrain')
  except importlib.metadata.PackageNotFoundError:
    pytest.skip('tftrain is not installed; scripts/test installs it')
  assert installed == tftrain.__version__

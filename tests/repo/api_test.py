"""The public names of `import tftrain`, opened lazily."""

import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

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


def test_names_are_sorted():
  assert tftrain.__all__ == sorted(tftrain.__all__)
  assert set(dir(tftrain)) >= set(tftrain.__all__)


@pytest.mark.parametrize('name', tftrain.__all__)
def test_name_is_there_and_documented(name):
  value = getattr(tftrain, name)
  # An alias such as Action has no docstring of its own.
  assert name == 'Action' or value.__doc__.strip()


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

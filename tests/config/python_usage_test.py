"""Python code that uses gin: its scopes and names are known."""

import gin
import pytest

from tests.support import gin_texts
from tftrain import errors
from tftrain.config import loader


def test_scopes_and_names_that_python_uses_are_known(tmp_path):
  (tmp_path / 'calls.py').write_text(
    'import gin\n'
    "@gin.configurable(module='calls')\n"
    'def size(n=3):\n  return n\n'
    'def enter():\n'
    "  with gin.config_scope('teacher'):\n    return size()\n"
  )
  text = 'import calls\n' + gin_texts.with_line(
    'calls.size.n = 4\nteacher/size.n = 5'
  )
  gin_texts.load(text)
  gin.clear_config()
  line = gin_texts.said(text + 'techer/calls.size.n = 6\n')
  assert "scope 'techer' is not entered" in line
  assert "did you mean 'teacher'?" in line


def test_a_scope_that_is_computed_may_be_any(tmp_path):
  (tmp_path / 'any_scope.py').write_text(
    'import gin\ndef enter(name):\n  return gin.config_scope(name)\n'
  )
  gin_texts.load(
    'import any_scope\n' + gin_texts.with_line('evl/mine.points.seed = 4')
  )


def test_a_binding_in_a_scope_that_was_not_used_has_no_effect(tmp_path):
  (tmp_path / 'any_scope.py').write_text(
    'import gin\ndef enter(name):\n  return gin.config_scope(name)\n'
  )
  loaded = gin_texts.load(
    'import any_scope\n' + gin_texts.with_line('evl/mine.points.seed = 4')
  )
  loaded.experiment.prepare(tmp_path / 'run', quiet=True)
  with pytest.raises(errors.ConfigError) as raised:
    loader.check_used()
  assert 'the binding evl/mine.points.seed has no effect' in str(raised.value)

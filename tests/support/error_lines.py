"""Errors of one line, expected by fragments of it."""

import pytest


def refused(kind, *fragments):
  """Expects an error of one line with these fragments."""
  return _Refused(kind, fragments)


class _Refused:
  def __init__(self, kind, fragments):
    self._raises = pytest.raises(kind)
    self._fragments = fragments

  def __enter__(self):
    self._info = self._raises.__enter__()

  def __exit__(self, *exc):
    swallowed = self._raises.__exit__(*exc)
    if swallowed:
      text = str(self._info.value)
      assert '\n' not in text
      for fragment in self._fragments:
        assert fragment in text
    return swallowed

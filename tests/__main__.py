"""Runs pytest, for Bazel: a test there is a program."""

import pathlib
import sys

if __name__ == '__main__':
  # Else `platform` is a room of the tests, and not of Python.
  here = pathlib.Path(__file__).parent
  sys.path[:] = [p for p in sys.path if pathlib.Path(p).absolute() != here]
  import pytest

  sys.exit(pytest.main(sys.argv[1:]))

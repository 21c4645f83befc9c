"""Runs pytest, for Bazel, whose tests are programs."""

import pathlib
import sys

# Else `platform` is a room of the tests, and not of Python.
sys.path[:] = [
  path
  for path in sys.path
  if pathlib.Path(path).absolute() != pathlib.Path(__file__).parent
]

import pytest

if __name__ == '__main__':
  sys.exit(pytest.main(sys.argv[1:]))

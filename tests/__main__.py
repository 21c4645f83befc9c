"""Runs pytest, for Bazel, whose tests are programs."""

import pathlib
import sys

# Else `platform` is a room of the tests, and not of Python.
_HERE = pathlib.Path(__file__).parent
sys.path[:] = [p for p in sys.path if pathlib.Path(p).absolute() != _HERE]

import pytest

if __name__ == '__main__':
  sys.exit(pytest.main(sys.argv[1:]))

"""Starts the processes that import TensorFlow once and fork for each case."""

import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parent.parent


def start(module):
  """The server in `module`, talked to in lines over its pipes."""
  return subprocess.Popen(
    [sys.executable, '-m', module],
    cwd=_ROOT,
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

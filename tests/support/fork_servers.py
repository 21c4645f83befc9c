"""Starts the processes that import TensorFlow once and fork for each case."""

import ctypes
import os
import signal
import subprocess
import sys

from tests.support import paths


def start(module):
  """The server in `module`, talked to in lines over its pipes."""
  return subprocess.Popen(
    [sys.executable, '-m', module],
    cwd=paths.ROOT,
    env={**os.environ, 'PYTHONPATH': str(paths.ROOT)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


def die_with_parent():
  """For servers and their children: none outlives who started it, however that
  one ended."""
  pr_set_pdeathsig = 1
  ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)

"""Starts the processes that import TensorFlow once and fork for each case."""

import ctypes
import os
import pathlib
import signal
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


def die_with_parent():
  """For servers and their children: none outlives who started it, however that
  one ended."""
  pr_set_pdeathsig = 1
  ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)

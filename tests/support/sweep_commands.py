"""Sweeps of a target that needs no TensorFlow, for tests."""

import os
import subprocess
import sys
import time

from tests.support import paths

TARGET = (sys.executable, '-m', 'tests.support.sweep_target')
_LIMIT = 60


def start(*arguments, env=None):
  return subprocess.Popen(
    [sys.executable, '-m', 'tftrain.sweep', *map(str, arguments)],
    cwd=paths.ROOT,
    env={**os.environ, **(env or {})},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def sweep(*arguments, env=None):
  """Runs a command of tftrain-sweep: (exit code, stdout, stderr)."""
  process = start(*arguments, env=env)
  try:
    out, err = process.communicate(timeout=_LIMIT)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  assert 'Traceback' not in err, err
  return process.returncode, out, err


def write(directory, text):
  path = directory / 'sweep.gin'
  path.write_text(text)
  return path


def plan(directory, text, target=TARGET):
  """Plans a sweep below `directory`; returns its directory."""
  if 'Sweep.metric' not in text:
    text += "\nSweep.metric = 'eval/test/accuracy'\n"
  path = write(directory, text)
  sweep_dir = directory / 'sweep'
  code, _, err = sweep(
    'plan', f'--sweep={path}', f'--sweep_dir={sweep_dir}', '--', *target
  )
  assert code == 0, err
  return sweep_dir


def run(sweep_dir, *arguments, env=None):
  return sweep('run', f'--sweep_dir={sweep_dir}', *arguments, env=env)


def states(sweep_dir):
  names = sorted(os.listdir(sweep_dir / 'leases'))
  return [name.split('.')[1] for name in names if not name.startswith('.')]


def until(seen, what):
  deadline = time.monotonic() + _LIMIT
  while not seen():
    assert time.monotonic() < deadline, f'{what} never came'
    time.sleep(0.01)

"""--local_workers: starts, stops and restarts small programs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tftrain.distribute import local_launcher

_STARTER = """
import sys
from tftrain.distribute import local_launcher
sys.orig_argv = ['python', '-c', sys.argv[1]]
sys.exit(local_launcher.run(2, max_restarts=int(sys.argv[2])))
"""
_WORKER = """
import json, os, signal, sys, time
task = json.loads(os.environ['TF_CONFIG'])['task']['index']
"""


def start(body, restarts=0):
  code = [sys.executable, '-c', _STARTER, _WORKER + body, str(restarts)]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  return subprocess.Popen(code, text=True, **pipes)


def ended(process):
  out, err = process.communicate(timeout=60)
  return process.returncode, out.splitlines(), err.splitlines()


def test_lines_say_whose_they_are_and_all_know_each_other():
  code, out, err = ended(
    start(
      "print(os.environ['TF_CONFIG'])\n"
      "print('late', os.environ['TFTRAIN_LOCAL_WORKER'], file=sys.stderr)"
    )
  )
  assert (code, sorted(err)) == (0, ['[0] late 1', '[1] late 1'])
  told = {line[:4]: json.loads(line[4:]) for line in out}
  assert told['[0] ']['cluster'] == told['[1] ']['cluster']
  workers = told['[0] ']['cluster']['worker']
  assert len(set(workers)) == 2
  assert all(address.startswith('127.0.0.1:') for address in workers)
  assert [told[f'[{i}] ']['task']['index'] for i in (0, 1)] == [0, 1]


def test_all_end_when_one_fails(monkeypatch):
  starter = _STARTER.replace(
    'sys.exit(',
    'local_launcher._NOTICE = local_launcher._GRACE = 1.0\nsys.exit(',
  )
  monkeypatch.setattr(sys.modules[__name__], '_STARTER', starter)
  code, _, _ = ended(
    start(
      'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
      'time.sleep(0.5)\n'
      'sys.exit(3) if task else time.sleep(600)'
    )
  )
  assert code == 128 + signal.SIGKILL  # the worst: it would not hear


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_a_signal_is_handed_on(name):
  process = start(
    f'signal.signal(signal.{name}, lambda *_: sys.exit(143))\n'
    "print('ready', flush=True)\n"
    'time.sleep(50)',
    restarts=3,
  )
  for _ in range(2):
    assert 'ready' in process.stdout.readline()
  process.send_signal(getattr(signal, name))
  code, _, err = ended(process)
  assert code == 143
  assert not err  # no restart, and no traceback


def test_after_a_failure_all_start_again(tmp_path):
  path = tmp_path / 'tries'
  code, out, err = ended(
    start(
      f'open({str(path)!r}, "a").write(str(task))\n'
      f'tries = open({str(path)!r}).read().count("1")\n'
      "print('try', flush=True)\n"
      'sys.exit(1 if task and tries < 3 else 0)',
      restarts=5,
    )
  )
  assert code == 0, err
  assert out.count('[1] try') == 3
  assert err[0] == 'workers ended with 0, 1; starting all again (1 of 5)'


def test_a_wrong_configuration_is_not_tried_again():
  code, out, err = ended(start('print(1)\nsys.exit(2)', restarts=5))
  assert (code, len(out), err) == (2, 2, [])


def test_the_worst_exit_code():
  stops = {143, 130}
  assert local_launcher.worst([0, 0], stops) == 0
  assert local_launcher.worst([0, 143], stops) == 143
  assert local_launcher.worst([143, 1], stops) == 1
  assert local_launcher.worst([1, 137], stops) == 137


def test_workers_die_with_their_starter():
  process = start(
    'from tftrain.distribute import local_launcher\n'
    'local_launcher.must_launch(2)\n'
    'print(os.getpid(), flush=True)\n'
    'time.sleep(50)'
  )
  pids = [int(process.stdout.readline()[4:]) for _ in range(2)]
  process.kill()
  process.communicate(timeout=20)
  deadline = time.monotonic() + 20
  while any(os.path.exists(f'/proc/{pid}') and not zombie(pid) for pid in pids):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def zombie(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] == 'Z'
  except FileNotFoundError:
    return True

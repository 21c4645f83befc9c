"""SIGKILL and resume: a killed and restarted run equals an undisturbed one."""

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import threading

import pytest

from tests.support import fork_servers

_KILLS = {'block': 6, 'save': 6, 'retention': 5, 'eval': 3}


class Server:
  """The process that forks the children; see tests/support/kill_server.py."""

  def __init__(self):
    self._process = fork_servers.start('tests.support.kill_server')
    self._lines = queue.Queue()
    threading.Thread(target=self._read, daemon=True).start()
    assert self.line() == 'ready'

  def line(self, timeout=90):
    return self._lines.get(timeout=timeout)

  def start(self, model_dir, mark=None, count=0):
    command = {'model_dir': str(model_dir), 'mark': mark, 'count': count}
    self._process.stdin.write(json.dumps(command) + '\n')
    self._process.stdin.flush()
    return int(self.line().removeprefix('pid '))

  def run_and_kill(self, model_dir, mark, count):
    """True if the child passed the mark and was killed there."""
    pid = self.start(model_dir, mark, count)
    line = self.line()
    if line == 'done':  # the run ended before it came to the mark
      assert self.line() == 'gone'
      return False
    assert line.startswith(mark), line
    os.kill(pid, signal.SIGKILL)
    assert self.line() == 'gone'
    return True

  def finish(self, model_dir):
    self.start(model_dir)
    assert self.line() == 'done'
    assert self.line() == 'gone'
    metrics = (model_dir / 'metrics.jsonl').read_bytes()
    return json.loads((model_dir / 'digests.json').read_text()), metrics

  def close(self):
    self._process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=10)
    self._process.kill()

  def _read(self):
    for line in self._process.stdout:
      self._lines.put(line.strip())


@pytest.fixture(scope='module')
def server():
  server = Server()
  yield server
  server.close()


@pytest.fixture(scope='module')
def never_killed(server, tmp_path_factory):
  return server.finish(tmp_path_factory.mktemp('never_killed'))


@pytest.mark.parametrize(
  'mark',
  [
    pytest.param('block', marks=pytest.mark.slow),
    pytest.param('retention', marks=pytest.mark.slow),
    pytest.param('save', marks=pytest.mark.slow),
    pytest.param('eval', marks=pytest.mark.slow),
  ],
)
def test_killed_and_started_again_equals_never_killed(
  mark, server, never_killed, tmp_path
):
  draw = random.Random(mark)
  # How often a life may pass the mark, so that every kill lands before the
  # end of the run and some progress is made between kills.
  most = {'block': 25, 'save': 6, 'retention': 4, 'eval': 7}[mark]
  landed = 0
  for _ in range(_KILLS[mark]):
    landed += server.run_and_kill(tmp_path, mark, draw.randint(2, most))
  digests, metrics = server.finish(tmp_path)
  run = json.loads((tmp_path / 'run.json').read_text())
  starts = [life['start_step'] for life in run['attempts']]
  assert len(set(starts)) > 2, f'too few lives went on from a save: {starts}'
  assert landed == _KILLS[mark], 'some kills did not land'
  assert metrics == never_killed[1]
  assert digests == never_killed[0]
  leftovers = [p.name for p in tmp_path.rglob('.tmp-*')]
  assert not leftovers


def test_the_kills_are_twenty():
  assert sum(_KILLS.values()) >= 20
  assert min(_KILLS[mark] for mark in ('block', 'save', 'retention')) >= 5
  assert _KILLS['eval'] >= 3

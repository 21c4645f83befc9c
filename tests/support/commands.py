"""Command lines of tftrain, run as processes of their own."""

import dataclasses
import json
import os
import pathlib
import queue
import signal
import tempfile
import threading
import time

from tests.support import fork_servers
from tests.support import paths

_LIMIT = 90  # seconds; a command that takes longer hangs


@dataclasses.dataclass(frozen=True)
class Ended:
  """What a command left.

  Attributes:
    code: Its exit code; minus the signal's number where a signal ended it.
    stdout: What it printed.
    stderr: What it complained of.
  """

  code: int
  stdout: str
  stderr: str

  @property
  def error(self):
    """The one line that says what went wrong."""
    lines = [l for l in self.stderr.splitlines() if l.startswith('error: ')]
    assert len(lines) == 1, self.stderr
    assert 'Traceback' not in self.stderr, self.stderr
    return lines[0].removeprefix('error: ')


class Running:
  """A command that was started and not waited for yet."""

  def __init__(self, commands, pid, into):
    self._commands = commands
    self._into = into
    self.pid = pid

  def send(self, name):
    os.kill(self.pid, getattr(signal, name))

  def until(self, seen, what):
    """Returns when `seen()` is true; it must be before the command ends."""
    deadline = time.monotonic() + _LIMIT
    while not seen():
      assert time.monotonic() < deadline, f'{what} never came'
      assert not self._is_dead(), f'ended before {what}: {self.text("stderr")}'
      time.sleep(0.002)

  def text(self, name):
    path = pathlib.Path(self._into.name, name)
    return path.read_text() if path.exists() else ''  # not begun yet

  def wait(self):
    try:
      code = self._commands._ask(wait=self.pid)['code']
    except queue.Empty:
      self.send('SIGKILL')
      self._commands._answer()  # else the next one would get it
      raise AssertionError(f'hung: {self.text("stderr")}') from None
    ended = Ended(code, self.text('stdout'), self.text('stderr'))
    self._into.cleanup()
    return ended

  def _is_dead(self):
    # The third field of stat: Z is a process that only waits to be counted.
    stat = pathlib.Path(f'/proc/{self.pid}/stat').read_text()
    return stat.rpartition(')')[2].split()[0] == 'Z'


class Commands:
  """Runs command lines in children forked from one warm process."""

  def __init__(self):
    self._process = fork_servers.start('tests.support.command_server')
    self._answers = queue.Queue()
    threading.Thread(target=self._read, daemon=True).start()

  def start(self, *arguments, cwd=paths.ROOT, **rights):
    """Starts one; `rights` are those that the server takes away or gives."""
    into = tempfile.TemporaryDirectory(prefix='command-')
    argv = ['tftrain', *arguments]
    answer = self._ask(argv=argv, cwd=str(cwd), into=into.name, **rights)
    return Running(self, answer['pid'], into)

  def run(self, *arguments, **options):
    return self.start(*arguments, **options).wait()

  def close(self):
    self._process.stdin.close()
    self._process.wait(timeout=20)

  def _ask(self, **command):
    self._process.stdin.write(json.dumps(command) + '\n')
    self._process.stdin.flush()
    return self._answer()

  def _answer(self):
    return json.loads(self._answers.get(timeout=_LIMIT))

  def _read(self):
    for line in self._process.stdout:
      self._answers.put(line)

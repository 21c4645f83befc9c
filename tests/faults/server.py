"""Runs scenarios in forked children, with faults put into their work.

Importing TensorFlow costs seconds, so one process imports it, runs nothing, and
forks a child for every command that it reads: a line of JSON

  {"scenario": name, "args": {...}, "hold": bool, "socket": path}

The child connects to the socket, talks through a Gate, and ends with a line
{"at": "end", ...} that holds its outcome. The gate uses `send` and `recv`,
which no sweep touches: the calls that are counted are the scenario's own.
"""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import json
import signal
import socket
import sys
import traceback

import keras  # noqa: F401
import tensorflow  # noqa: F401

from tests.faults import peer_scenarios
from tests.faults import scenarios
from tests.support import fork_servers
from tftrain import errors


class Gate:
  """Where a child waits until the faults of its next work are armed.

  Args:
    path: The socket of whoever asked for the child.
    hold: Whether to wait; without it everything just runs.
  """

  def __init__(self, path, hold):
    self._socket = socket.socket(socket.AF_UNIX)
    self._socket.connect(path)
    self._hold = hold
    self._rest = b''
    self.say('hello', pid=os.getpid())

  def directories(self):
    """The directories to work in, for as long as there are any."""
    while True:
      self.say('ready')
      directory = self._hear()['directory']
      if directory is None:
        return
      yield directory

  def swept(self, function, **facts):
    """Runs `function` where faults count; returns what came of it.

    Nothing after it counts: the child waits until the faults are disarmed.
    """
    if self._hold:
      self.say('gate')
      self._hear()
    outcome = attempt(function)
    self.say('done', **outcome, **facts)
    if self._hold:
      self._hear()
    return outcome

  def say(self, at, **facts):
    line = json.dumps({'at': at, **facts}) + '\n'
    self._socket.sendall(line.encode())

  def _hear(self):
    while b'\n' not in self._rest:
      received = self._socket.recv(65536)
      if not received:  # whoever asked is gone
        os._exit(2)
      self._rest += received
    line, self._rest = self._rest.split(b'\n', 1)
    return json.loads(line)


def attempt(function):
  """What came of a call: {"value": ...} or {"error": ..., "text": ...}."""
  try:
    return {'value': function()}
  except Exception as error:
    return {
      'error': type(error).__name__,
      'text': str(error),
      'tftrain': isinstance(error, errors.Error),
      'where': _where(error),
    }


def _where(error):
  """The innermost lines of ours."""
  frames = traceback.extract_tb(error.__traceback__)
  return [
    f'{os.path.basename(frame.filename)}:{frame.lineno}'
    for frame in frames
    if 'tftrain' in frame.filename
  ][-3:]


def child(command):
  fork_servers.die_with_parent()
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  null = os.open(os.devnull, os.O_RDWR)
  for number in (0, 1, 2):
    os.dup2(null, number)
  os.close(null)
  gate = Gate(command['socket'], command['hold'])
  name = command['scenario']
  home = scenarios if hasattr(scenarios, name) else peer_scenarios
  scenario = getattr(home, name)
  gate.say('end', **attempt(lambda: scenario(gate, **command['args'])))


def main():
  fork_servers.die_with_parent()
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
  print('ready', flush=True)
  for line in sys.stdin:
    if os.fork() == 0:
      try:
        child(json.loads(line))
        os._exit(0)
      finally:
        os._exit(1)


if __name__ == '__main__':
  main()

"""Faults at every system call: the children's side of the wire, and strace.

strace attaches to a child that waits at its gate and makes the n-th call of
one kind fail, or kills the process there, for n = 1, 2, ... until none is hit.
It counts the calls of each thread by itself; so each n can fall on several.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import queue
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import pytest

from tests.faults import scenarios
from tests.support import fork_servers

CALLS = (
  'openat',
  'write',
  'pwrite64',
  'rename',
  'unlink',
  'unlinkat',
  'mkdir',
  'rmdir',
  'ftruncate',
  'fsync',
)
"""What a save changes a disk with; errors are put into `close` as well."""

KILL = 'signal=SIGKILL'
_LIMIT = 60  # seconds; a child that takes longer hangs


class Hung(AssertionError):
  """A child did neither end nor go on."""


class Child:
  """A forked child, seen from outside."""

  def __init__(self, listener):
    self._socket, _ = listener.accept()
    self._messages = queue.Queue()
    threading.Thread(target=self._read, daemon=True).start()
    self.pid = self.hear()['pid']

  def hear(self, limit=_LIMIT):
    """The next message; None if the child has died."""
    try:
      message = self._messages.get(timeout=limit)
    except queue.Empty:
      self.kill()
      raise Hung(f'pid {self.pid} was silent for {limit} s') from None
    if message is None:
      self._messages.put(None)  # it stays dead
    return message

  def expect(self, at, limit=_LIMIT):
    """The next message called `at`; those before it are passed over."""
    while True:
      message = self.hear(limit)
      assert message is not None, f'died before "{at}"'
      if message['at'] == at:
        return message
      assert message['at'] != 'end', message

  def say(self, **facts):
    # It may have been killed meanwhile.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self._socket.sendall((json.dumps(facts) + '\n').encode())

  def work(self, directory):
    """Gives it the next directory to work in."""
    self.expect('ready')
    self.say(directory=str(directory))

  def close(self):
    """Lets it end in peace."""
    self.expect('ready')
    self.say(directory=None)
    end = self.expect_end()
    self._socket.close()
    return end

  def expect_end(self):
    while True:
      message = self.hear()
      assert message is not None, 'died'
      if message['at'] == 'end':
        assert 'error' not in message, message
        return message['value']

  def kill(self):
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, signal.SIGKILL)

  def join(self):
    """Returns when it is dead; what it held is free then."""
    while self.hear() is not None:
      pass
    while pathlib.Path(f'/proc/{self.pid}').exists():
      time.sleep(0.002)

  def _read(self):
    with self._socket.makefile() as lines:
      # A reset is the end as well.
      with contextlib.suppress(OSError, ValueError):
        for line in lines:
          self._messages.put(json.loads(line))
    self._messages.put(None)


class Server:
  """The process that forks the children; see server.py."""

  def __init__(self):
    self._directory = tempfile.TemporaryDirectory(prefix='faults-')
    self._path = f'{self._directory.name}/socket'
    self._listener = socket.socket(socket.AF_UNIX)
    self._listener.bind(self._path)
    self._listener.listen()
    self._listener.settimeout(_LIMIT)
    self._process = fork_servers.start('tests.faults.server')
    assert self._process.stdout.readline().strip() == 'ready'

  def start(self, scenario, hold=False, **args):
    command = {
      'scenario': scenario,
      'args': args,
      'hold': hold,
      'socket': self._path,
    }
    self._process.stdin.write(json.dumps(command) + '\n')
    self._process.stdin.flush()
    return Child(self._listener)

  def close(self):
    self._process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout=10)
    self._process.kill()
    self._process.wait()
    self._listener.close()
    self._directory.cleanup()


class Tracer:
  """strace, attached to a child with one fault armed.

  Args:
    pid: The child; all its threads are traced, those to come as well.
    call: The system call.
    action: What happens in it, in strace's words: `error=ENOSPC`.
    n: In which one; None in all of them.
  """

  def __init__(self, pid, call, action, n):
    when = '' if n is None else f':when={n}'
    self._log = tempfile.NamedTemporaryFile(prefix='strace-')
    self._process = subprocess.Popen(
      [
        *('strace', '-f', '-q', '-o', self._log.name, '-p', str(pid)),
        *('-e', f'trace={call}', '-e', f'inject={call}:{action}{when}'),
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    deadline = time.monotonic() + _LIMIT
    while not self._is_attached(pid):
      if self._process.poll() is not None:
        pytest.skip(f'strace cannot attach: {self._process.stderr.read()}')
      assert time.monotonic() < deadline, 'strace does not attach'
      time.sleep(0.002)

  def detach(self, alive):
    """Takes the fault away; True if it had come about.

    Args:
      alive: Whether the child lives; else strace ends by itself, and a signal
        that comes while it reaps the child may leave it waiting for good.
    """
    if alive:
      self._process.send_signal(signal.SIGINT)
    try:
      self._process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
      self._process.kill()  # the kernel then lets the child go
      self._process.communicate()
    with self._log as log:
      text = pathlib.Path(log.name).read_text(errors='replace')
    return '(INJECTED)' in text or '+++ killed by SIGKILL' in text

  def _is_attached(self, pid):
    for task in pathlib.Path(f'/proc/{pid}/task').iterdir():
      status = (task / 'status').read_text()
      if f'TracerPid:\t{self._process.pid}\n' not in status:
        return False
    return True


def require_strace():
  """Skips the test, saying why, where no fault can be put into a call."""
  if shutil.which('strace') is None:
    pytest.skip('no strace on PATH: apt-get install strace')


@dataclasses.dataclass
class Point:
  """One fault, and what it left.

  Attributes:
    call: The system call.
    n: Which one.
    action: The fault.
    directory: What it left on disk.
    outcome: How the call ended; None if the process died there.
  """

  call: str
  n: int
  action: str
  directory: pathlib.Path
  outcome: dict | None

  def __str__(self):
    return f'{self.call} {self.n} {self.action}: {self.outcome}'


class World:
  """The undisturbed run, images to put faults into, and a server.

  Args:
    server: A Server.
    directory: Where all of it lies.
  """

  def __init__(self, server, directory):
    self.server = server
    self.directory = directory
    child = server.start('golden', directory=str(directory))
    golden = child.expect_end()
    self.digests = {int(step): v for step, v in golden['digests'].items()}
    self.end = golden['end']
    self.source = directory / 'source'
    self._number = 0
    self._dress()

  def image(self, name='before'):
    """A copy of one of the directories that sweeps begin with."""
    self._number += 1
    copy = self.directory / 'points' / f'{self._number:05d}'
    shutil.copytree(self.directory / name, copy)
    return copy

  def _dress(self):
    """Puts the user's files beside ours, and makes an untidy image."""
    before = self.directory / 'before'
    for path in user_files(before):
      path.write_text('mine\n')
    both, untidy = self.directory / 'both', self.directory / 'untidy'
    name = f'ckpt-{scenarios.SAVED:08d}'
    newest = self.source / 'checkpoints' / name
    for image in (both, untidy):
      shutil.copytree(before, image)
      shutil.copytree(newest, image / 'checkpoints' / name)
    checkpoints = untidy / 'checkpoints'
    (checkpoints / name / 'state.index').write_bytes(b'')
    shutil.copytree(newest, checkpoints / f'.tmp-{name}-of-a-killed-save')

  @functools.cached_property
  def export(self):
    """What a good export of step 20 computes."""
    image = self.image()
    args = arguments(self, 'export')
    child = self.server.start('export', **args)
    child.work(image)
    assert 'error' not in child.expect('done')
    child.close()
    return verified(self, [image])[0]['export']


def user_files(model_dir):
  return [model_dir / 'notes.txt', model_dir / 'checkpoints' / 'notes.txt']


def arguments(world, scenario):
  """What a scenario is called with."""
  needs_source = scenario in ('save', 'export')
  return {'source': str(world.source)} if needs_source else {}


def image_of(scenario):
  return 'untidy' if scenario == 'restore' else 'before'


def kill_sweep(
  world, scenario, calls=CALLS, numbers=None, image=None, stride=1
):
  """Kills the scenario before each of its system calls.

  Args:
    world: The World.
    scenario: Its name.
    calls: Which system calls.
    numbers: Call -> the numbers to try, instead of all there are.
    image: What it begins with, if not what is usual for the scenario.
    stride: Of how many calls one is tried.

  Returns:
    The Points at which a process died; `outcome` is None if it was the child.
  """
  start = functools.partial(
    world.server.start, scenario, True, **arguments(world, scenario)
  )
  points = []
  following = start()
  for call in calls:
    n = 0
    todo = None if numbers is None else list(numbers[call])
    while todo is None or todo:
      n = n + stride if todo is None else todo.pop(0)
      # The next child prepares itself while this one is killed.
      child, following = following, start()
      point = fault(world, child, image or image_of(scenario), call, KILL, n)
      if point is None:
        child.close()
        if todo is None:
          break
        continue
      if point.outcome is None:
        child.join()
      else:  # it is a process of the child's that died: git, say
        child.close()
      points.append(point)
  following.kill()
  return points


def error_sweep(
  world, scenario, error, calls=(*CALLS, 'close'), most=None, image=None
):
  """Makes each system call of the scenario fail, one at a time.

  A process that got an error goes on, so one child takes many points.

  Args:
    world: The World.
    scenario: Its name.
    error: What the call returns: 'ENOSPC'.
    calls: Which system calls.
    most: How many points to draw of each call; None means all of them.
    image: What it begins with, if not what is usual for the scenario.

  Returns:
    The Points at which a call failed.
  """
  points = []
  child = world.server.start(scenario, True, **arguments(world, scenario))
  draw = random.Random(f'{scenario} {error}')
  for call in calls:
    n = 0
    for _ in range(most or 10**6):
      n += 1 if most is None else draw.randint(1, 4)
      begin = image or image_of(scenario)
      point = fault(world, child, begin, call, f'error={error}', n)
      if point is None:
        break
      points.append(point)
      if point.outcome is None:  # it gave up altogether
        child.join()
        child = world.server.start(scenario, True, **arguments(world, scenario))
  child.close()
  return points


def fault(world, child, image, call, action, n):
  """One fault in one child; None if it was past the last call."""
  directory = world.image(image)
  child.work(directory)
  child.expect('gate')
  tracer = Tracer(child.pid, call, action, n)
  child.say(go=True)
  message = child.hear()
  hit = tracer.detach(alive=message is not None)
  if message is not None:
    child.say(go=True)
  if not hit:
    assert message is not None, f'died without a fault at {call} {n}'
    shutil.rmtree(directory)
    return None
  outcome = message and {k: v for k, v in message.items() if k != 'at'}
  return Point(call, n, action, directory, outcome)


def verified(world, directories):
  """What a fresh process finds in each of the directories."""
  child = world.server.start('verify')
  found = []
  for directory in directories:
    child.work(directory)
    before = child.expect('done')['before']
    found.append({**child.expect('verified'), 'left': before})
  child.close()
  return found


def resumed(world, directories, **options):
  """How a run ends that goes on in each of the directories."""
  child = world.server.start('train', **options)
  ends = []
  for directory in directories:
    child.work(directory)
    ends.append(child.expect('trained'))
  child.close()
  return ends


def life(server, directory, **options):
  """One life of a run: how it ended; None if it was held, and killed there."""
  hold_at = options.get('hold_at', float('inf'))
  child = server.start('train', **options)
  child.work(directory)
  while True:
    message = child.hear()
    assert message is not None, 'died of itself'
    if message['at'] == 'trained':
      child.close()
      return message
    assert message['at'] != 'end', message
    if message['at'] == 'step' and message['step'] >= hold_at:
      child.kill()
      child.join()
      return None


def check(world, points, steps, every=5, leftovers=1):
  """Checks what the faults left: what is restored, junk, and the run's end.

  Args:
    world: The World.
    points: The Points.
    steps: The steps that may be restored; the last one is what was under way.
    every: Of how many points one is trained on to the end.
    leftovers: How many temporary files or directories a fault may leave.
  """
  copies = []
  for point in points[::every]:
    copy = point.directory.with_name(point.directory.name + '-resumed')
    shutil.copytree(point.directory, copy)
    copies.append(copy)
  found = verified(world, [point.directory for point in points])
  problems = [
    f'{point}: {problem}'
    for point, facts in zip(points, found, strict=True)
    for problem in _problems(world, point, facts, steps, leftovers)
  ]
  for point, end in zip(points[::every], resumed(world, copies), strict=True):
    if end['outcome'] != {'value': scenarios.STEPS}:
      problems.append(f'{point}: cannot go on: {end["outcome"]}')
    elif end['end'] != world.end:
      problems.append(f'{point}: ends differently')
  assert not problems, '\n'.join(problems)
  for directory in [*copies, *(point.directory for point in points)]:
    shutil.rmtree(directory)  # else thousands of them pile up


def _problems(world, point, facts, steps, leftovers):
  """What is wrong with what a fresh process found after a fault."""
  outcome = facts['outcome']
  if 'error' in outcome:
    yield f'refused: {outcome}'
    return
  step = outcome['value']
  if step not in steps:
    yield f'restored {step}, not one of {steps}'
  elif facts['digests'] != world.digests[step]:
    yield f'restored {step} with other values'
  went_well = point.outcome is not None and 'error' not in point.outcome
  if went_well and step != steps[-1]:
    yield f'said to be saved, yet {step} is restored'
  if len(facts['left']) > leftovers:
    yield f'left {facts["left"]}'
  if facts['after']:
    yield f'{facts["after"]} outlive a clean start'
  if facts['export'] not in (None, world.export):
    yield 'another export'
  for path in user_files(point.directory):
    if not path.exists() or path.read_text() != 'mine\n':
      yield f'{path.name} is gone'


def tally(points):
  """'openat 12, write 4': the number of points of each call."""
  counts = collections.Counter(point.call for point in points)
  return ', '.join(f'{call} {count}' for call, count in counts.items())


def endings(points):
  """'CheckpointError 20, went on 17': how often the process ended how."""
  counts = collections.Counter(
    'died' if point.outcome is None else point.outcome.get('error', 'went on')
    for point in points
  )
  return ', '.join(f'{name} {count}' for name, count in counts.items())

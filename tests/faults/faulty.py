"""Disks that fail, die or remember; put in place of `files.disk`."""

import os
import pathlib
import threading

import tensorflow as tf

from tftrain.platform import _filesystem
from tftrain.platform import signals as signals_lib

OPERATIONS = tuple(name for name in vars(_filesystem.Disk) if name[0] != '_')


class Killed(BaseException):
  """Stands for the death of the process: nothing of ours may run after it."""


class Watched(_filesystem.Disk):
  """Calls `before` and `after` around each operation."""

  def before(self, name, args):
    pass

  def after(self):
    pass


def _watch(name):
  original = getattr(_filesystem.Disk, name)

  def operation(self, *args):
    self.before(name, args)
    result = original(self, *args)
    self.after()
    return result

  setattr(Watched, name, operation)


for _name in OPERATIONS:
  _watch(_name)


class Counting(Watched):
  """Knows its n-th operation when it comes, from 1."""

  def __init__(self, n):
    self._left = n
    self.hit = None
    """The name of that operation; None if it never came so far."""

  def _is_the_one(self, name):
    self._left -= 1
    if self._left == 0:
      self.hit = name
    return self._left == 0


class FaultyDisk(Counting):
  """Fails in its n-th operation.

  Args:
    n: In which, from 1.
    code: With which `errno`.
  """

  def __init__(self, n, code):
    super().__init__(n)
    self._code = code

  def before(self, name, args):
    if self._is_the_one(name):
      raise OSError(self._code, os.strerror(self._code), str(args[0]))


class DyingDisk(Counting):
  """Dies in its n-th operation, and refuses all later ones.

  Args:
    n: In which, from 1.
    torn: Whether half of what that operation was to write is on disk.
  """

  def __init__(self, n, torn):
    super().__init__(n)
    self._torn = torn

  def before(self, name, args):
    halves = self._torn and name in ('write', 'append')
    if self._is_the_one(name) and halves:
      path, content = args
      getattr(_filesystem.Disk, name)(self, path, content[: len(content) // 2])
    if self.hit:
      raise Killed


class InterruptingDisk(Counting):
  """A signal comes just after its n-th operation, as in an export."""

  def before(self, name, args):
    self._comes = self._is_the_one(name)

  def after(self):
    if self._comes:
      self._comes = False
      raise signals_lib.Interrupted


class RecordingDisk(Watched):
  """Logs the operations below a directory, TensorFlow's own among them.

  Those do not come by here: they are found by looking at the directory before
  each operation that does.
  """

  def __init__(self, root):
    self._root = root
    self._lock = threading.Lock()
    self._known = scan(root)
    self.log = []
    """Tuples (operation, its arguments ...), paths below the directory."""

  def mark(self, *what):
    self._look()
    self.log.append(('mark', *what))

  def before(self, name, args):
    self._look()
    paths = [arg for arg in args if isinstance(arg, pathlib.Path)]
    if not all(path.is_relative_to(self._root) for path in paths):
      return  # the directory above: it is not part of the model
    relative = [
      arg if isinstance(arg, bytes) else str(arg.relative_to(self._root))
      for arg in args
    ]
    self.log.append((name, *relative))

  def after(self):
    self._known = scan(self._root)

  def _look(self):
    found = scan(self._root)
    for path in sorted(self._known.keys() - found.keys(), reverse=True):
      is_file = self._known[path] is not None
      self.log.append(('remove' if is_file else 'remove_directory', path))
    for path, content in found.items():
      if path not in self._known and content is None:
        self.log.append(('make_directory', path))
      elif self._known.get(path) != content:
        self.log.append(('write', path, content))
    self._known = found


def scan(root):
  """Path below `root` -> content, None for a directory; parents come first."""
  return {
    str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
    for path in sorted(root.rglob('*'))
  }


class Value:
  """The least that a Checkpointer saves; all of it tells the step."""

  def __init__(self, step=0):
    self.step = step
    self.weights = tf.random.stateless_normal([40, 5], [step, 1])

  def read_state(self):
    return {
      'step': tf.constant(self.step, tf.int64),
      'text': tf.constant([f'step {self.step}', '']),
      'weights': self.weights,
    }

  def write_state(self, state):
    self.step = int(state['step'])
    self.weights = tf.constant(state['weights'])

  def facts(self):
    return {'optimizers': {}, 'seed': 0, 'data': {}}

  def write_facts(self, facts):
    pass

  def is_of(self, step):
    same = self.weights.numpy() == Value(step).weights.numpy()
    return self.step == step and bool(same.all())

"""A power cut: unsynced data is gone, or half of it is.

The operations of some saves are recorded. For each point in that log the
directories are built that a power cut may leave there: a file that was not
synced since it was written is empty, and of the names that were made, changed
or removed since their directory was synced, some are as before.
"""

import dataclasses
import pathlib
from typing import Any

import pytest

from tests.faults import faulty
import tftrain
from tftrain import errors
from tftrain.platform import _filesystem
from tftrain.platform import files


@dataclasses.dataclass(eq=False)
class _File:
  content: bytes
  durable: bytes = b''  # worst case: the new length is lost with the bytes


@dataclasses.dataclass(eq=False)
class _Folder:
  """A directory: what is on the platter, and the changes that may be lost."""

  names: dict[str, Any] = dataclasses.field(default_factory=dict)
  durable: dict[str, Any] = dataclasses.field(default_factory=dict)
  pending: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  def change(self, **names):
    """Changes names, None for one that goes; all of them or none survive."""
    self.pending.append(names)
    self.names = _updated(self.names, names)

  def sync(self):
    self.durable = dict(self.names)
    self.pending = []


def _updated(names, changes):
  after = {**names, **changes}
  return {name: node for name, node in after.items() if node is not None}


class _Platter:
  """A file system that knows what a power cut would leave of it."""

  def __init__(self, tree):
    self._root = _Folder()
    for path, content in tree.items():
      folder, name = self._locate(path)
      node = _Folder() if content is None else _File(content, content)
      folder.names[name] = folder.durable[name] = node

  def apply(self, name, *args):
    getattr(self, f'_{name}')(*args)

  def images(self):
    """What it may hold after a power cut: path -> content."""
    pending = [
      change for folder in self._folders() for change in folder.pending
    ]
    every = frozenset(map(id, pending))
    choices = {frozenset(), every}
    for change in pending:
      choices.add(frozenset([id(change)]))
      choices.add(every - {id(change)})
    return [dict(_image(self._root, chosen)) for chosen in choices]

  def _folders(self):
    seen, todo = [], [self._root]
    while todo:
      folder = todo.pop()
      seen.append(folder)
      nodes = [*folder.names.values(), *folder.durable.values()]
      nodes += [node for change in folder.pending for node in change.values()]
      for node in nodes:
        if isinstance(node, _Folder) and node not in seen + todo:
          todo.append(node)
    return seen

  def _locate(self, path):
    """(the folder a path is in, its name there)."""
    *parents, name = pathlib.PurePath(path).parts
    folder = self._root
    for parent in parents:
      folder = folder.names[parent]
    return folder, name

  def _node(self, path):
    if path == '.':
      return self._root
    folder, name = self._locate(path)
    return folder.names[name]

  def _mark(self, *what):
    pass

  def _make_directory(self, path):
    folder, name = self._locate(path)
    folder.change(**{name: _Folder()})

  def _write(self, path, content):
    folder, name = self._locate(path)
    if name in folder.names:
      folder.names[name].content = content
      folder.names[name].durable = b''
    else:
      folder.change(**{name: _File(content)})

  def _append(self, path, content):
    folder, name = self._locate(path)
    if name not in folder.names:
      folder.change(**{name: _File(b'')})
    folder.names[name].content += content

  def _rename(self, old, new):
    (folder, old_name), (target, new_name) = map(self._locate, (old, new))
    assert folder is target, 'a rename between directories is not modelled'
    folder.change(**{new_name: folder.names[old_name], old_name: None})

  def _remove(self, path):
    folder, name = self._locate(path)
    folder.change(**{name: None})

  _remove_directory = _remove

  def _sync(self, path):
    node = self._node(path)
    if isinstance(node, _File):
      node.durable = node.content
    else:
      node.sync()


def _image(folder, chosen, prefix=''):
  names = folder.durable
  for change in folder.pending:
    if id(change) in chosen:
      names = _updated(names, change)
  for name, node in names.items():
    if isinstance(node, _Folder):
      yield prefix + name, None
      yield from _image(node, chosen, f'{prefix}{name}/')
    else:
      yield prefix + name, node.durable


def _record(model_dir, monkeypatch, steps, **options):
  """The log of saving at each of the steps, and the tree before it."""
  before = faulty.scan(model_dir)
  disk = faulty.RecordingDisk(model_dir)
  monkeypatch.setattr(files, 'disk', disk)
  value = faulty.Value()
  checkpointer = tftrain.Checkpointer(model_dir, value, keep=1, **options)
  for step in steps:
    value.write_state(faulty.Value(step).read_state())
    disk.mark('saving', step)
    checkpointer.save()
    checkpointer.wait()
    disk.mark('saved', step)
  monkeypatch.setattr(files, 'disk', _filesystem.Disk())
  return before, disk.log


def _losses(tmp_path, before, log, committed):
  """What power cuts in a recorded log would cost; empty if nothing.

  Args:
    tmp_path: Where the images are built.
    before: The tree that the log begins with; all of it is durable.
    log: The operations.
    committed: The last step that was saved before, None for none.
  """
  platter = _Platter(before)
  allowed = {committed}
  losses, seen = [], set()
  for number, (name, *args) in enumerate(log):
    platter.apply(name, *args)
    if name == 'mark':
      what, step = args
      allowed = {step} if what == 'saved' else allowed | {step}
    for image in platter.images():
      key = (frozenset(image.items()), frozenset(allowed))
      if key in seen:
        continue
      seen.add(key)
      found = _restore(tmp_path / str(len(seen)), image)
      if found not in allowed:
        at = f'after operation {number}, {name} {args[:1]}'
        losses.append(f'{at}: {found}, not one of {allowed}')
  assert len(seen) > len(log), 'hardly any image differs'
  return losses


def _restore(directory, image):
  """The step restored from an image, or what was wrong."""
  directory.mkdir()
  for path, content in image.items():
    if content is None:
      (directory / path).mkdir()
    else:
      (directory / path).write_bytes(content)
  value = faulty.Value()
  try:
    step = tftrain.Checkpointer(directory, value).restore()
  except errors.CheckpointError as error:
    return f'refused: {error}'
  return step if step is None or value.is_of(step) else 'other values'


def _begun(model_dir):
  """A run whose step 10 was saved long ago."""
  checkpointer = tftrain.Checkpointer(model_dir, faulty.Value(10), keep=1)
  checkpointer.save()
  checkpointer.wait()
  (model_dir / 'checkpoints/.tmp-old').mkdir()
  (model_dir / 'checkpoints/.tmp-old/half').write_text('x')


@pytest.fixture
def model_dir(tmp_path):
  directory = tmp_path / 'run'
  directory.mkdir()
  return directory


def test_a_power_cut_loses_no_durable_checkpoint(
  model_dir, tmp_path, monkeypatch
):
  _begun(model_dir)
  before, log = _record(model_dir, monkeypatch, [20, 30], durable=True)
  assert not _losses(tmp_path, before, log, 10)


def test_a_power_cut_does_not_lose_the_first_durable_checkpoint(
  model_dir, tmp_path, monkeypatch
):
  """Its directory is new as well, and so is that name."""
  before, log = _record(model_dir, monkeypatch, [10, 20], durable=True)
  assert not _losses(tmp_path, before, log, None)


def test_a_power_cut_can_lose_one_that_is_not_durable(
  model_dir, tmp_path, monkeypatch
):
  """Else the tests above prove nothing."""
  _begun(model_dir)
  before, log = _record(model_dir, monkeypatch, [20, 30], durable=False)
  losses = _losses(tmp_path, before, log, 10)
  assert any('refused' in loss for loss in losses), losses

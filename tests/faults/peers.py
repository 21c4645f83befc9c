"""The same kills put into others' ways to save.

  python -m tests.faults.peers

prints a Markdown table. A kill is survived if a fresh process restores the last
state or the one that was being saved, whole, and knows which.
"""

import collections
import pathlib
import shutil
import tempfile

from tests.faults import harness
from tests.faults import peer_scenarios
from tests.faults import scenarios

_PEERS = {
  'tf_new': '`tf.train.CheckpointManager`, a new number',
  'tf_again': '`tf.train.CheckpointManager`, the same number again',
  'keras_single': '`keras.callbacks.BackupAndRestore`',
  'keras_double': '`BackupAndRestore(double_checkpoint=True)`',
}


class _Peer:
  """What `harness.kill_sweep` needs of a World."""

  def __init__(self, server, directory, kind):
    self.server = server
    self._directory = directory
    self._kind = kind
    self._number = 0
    before = directory / 'before'
    before.mkdir(parents=True)
    child = server.start('peer_begin', kind=kind, directory=str(before))
    child.expect_end()

  def image(self, name):
    self._number += 1
    copy = self._directory / f'{self._number:05d}'
    shutil.copytree(self._directory / name, copy)
    return copy

  def sweep(self):
    """(the Points, what was lost at some of them -> how often)."""
    points = harness.kill_sweep(self, self._kind)
    child = self.server.start('peer_verify', kind=self._kind)
    lost = collections.Counter()
    for point in points:
      child.work(point.directory)
      outcome = child.expect('done')
      if 'error' in outcome:
        lost[f'cannot be read: {outcome["error"]}'] += 1
      elif outcome['value'] not in (peer_scenarios.OLD, peer_scenarios.NEW):
        lost[outcome['value']] += 1
    child.close()
    return points, lost


def _ours(server, directory):
  """The same of tftrain's own save."""
  world = harness.World(server, directory)
  points = harness.kill_sweep(world, 'save')
  steps = (scenarios.BEFORE, scenarios.SAVED)
  directories = [point.directory for point in points]
  lost = collections.Counter()
  for facts in harness.verified(world, directories):
    step = facts['outcome'].get('value')
    if step not in steps:
      lost[f'restored {step}'] += 1
    elif facts['digests'] != world.digests[step]:
      lost['other values'] += 1
  return points, lost


def _row(system, points, lost):
  survived = len(points) - sum(lost.values())
  what = '; '.join(f'{text} ({n})' for text, n in lost.most_common())
  print(
    f'| {system} | {len(points)} | {survived} | {what or "nothing"} |',
    flush=True,
  )


def main():
  server = harness.Server()
  print('| system | points | survived | what was lost |')
  print('|---|---:|---:|---|')
  with tempfile.TemporaryDirectory(prefix='peers-') as directory:
    directory = pathlib.Path(directory)
    try:
      _row('tftrain `Checkpointer`', *_ours(server, directory / 'tftrain'))
      for kind, system in _PEERS.items():
        _row(system, *_Peer(server, directory / kind, kind).sweep())
    finally:
      server.close()


if __name__ == '__main__':
  main()

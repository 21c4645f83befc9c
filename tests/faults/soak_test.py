"""Killed again and again, wherever it happens to be, until it is through."""

import random
import time

import pytest

from tests.faults import harness
from tftrain.checkpoint import format

_STEPS = 1000
_OPTIONS = {
  'steps': _STEPS,
  'steps_per_loop': 50,
  'log_every': 50,
  'checkpoint_every': 5,
  'keep': 2,
  'tell': _STEPS,
}
_LIVES = 150


def _live(server, directory, seconds):
  """A life of so many seconds; how the run ended, if it did before."""
  child = server.start('train', **_OPTIONS, pause=0.02)
  child.work(directory)
  child.expect('prepared')  # nothing is written before
  deadline = time.monotonic() + seconds
  while True:
    left = deadline - time.monotonic()
    try:
      message = child.hear(max(left, 0.001))
    except harness.Hung:  # which is what is wanted here: it has been killed
      child.join()
      return None
    if message['at'] == 'trained':
      child.close()
      return message


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a busy machine
def test_killed_every_other_second_ends_as_never_killed(
  server, tmp_path_factory
):
  quiet = harness.life(
    server, tmp_path_factory.mktemp('quiet'), **_OPTIONS, pause=0
  )
  directory = tmp_path_factory.mktemp('soak')
  draw = random.Random(0)
  patience, newest, idle = 1.0, 0, 0
  for lives in range(1, _LIVES):
    ended = _live(server, directory, patience * draw.uniform(0.5, 3))
    if ended:
      break
    steps = format.committed_steps(directory / 'checkpoints')
    idle = 0 if max(steps, default=0) > newest else idle + 1
    newest = max(steps, default=0)
    if idle == 8:  # a busy machine: longer lives, or it never ends
      patience, idle = 2 * patience, 0
  assert ended, f'not through after {_LIVES} lives: at step {newest}'
  print(f'{lives} lives')
  assert ended['outcome'] == {'value': _STEPS}
  assert ended['end'] == quiet['end']
  assert lives > 5, 'it was hardly ever killed'
  assert not list(directory.rglob('.tmp-*'))

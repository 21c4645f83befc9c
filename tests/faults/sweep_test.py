"""Killed, or refused by the disk, at each system call: before or after.

Whatever is restored then is the last checkpoint or the one that was under way,
with the bits of the undisturbed run; and the run that goes on from there ends
as if nothing had happened.
"""

import re

import pytest

from tests.faults import harness
from tests.faults import scenarios

_ERRORS = ('ENOSPC', 'EIO', 'EMFILE', 'EACCES')
_BEFORE, _SAVED = scenarios.BEFORE, scenarios.SAVED

# What may be restored after a fault in each, the newest last.
_STEPS = {
  'save': (_BEFORE, _SAVED),
  'restore': (_BEFORE,),
  'export': (_BEFORE,),
  'flush': (_BEFORE,),
}
# The untidy image begins with a temporary directory of an earlier kill.
_LEFTOVERS = {'save': 1, 'restore': 2, 'export': 1, 'flush': 1}


@pytest.fixture(autouse=True)
def _needs_strace():
  harness.require_strace()


@pytest.mark.slow
def test_a_sample_of_the_kills_of_a_save(world):
  """At what comes right before the commit, the commit, and after it."""
  numbers = {'write': [2], 'rename': [4, 5]}
  points = harness.kill_sweep(world, 'save', list(numbers), numbers)
  assert len(points) == 3
  harness.check(world, points, _STEPS['save'], every=3)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a hundred processes, on a busy machine
@pytest.mark.parametrize('scenario', _STEPS)
def test_killed_at_each_call(scenario, world):
  # A restore writes nothing, so its hundred calls are alike.
  stride = 3 if scenario == 'restore' else 1
  points = harness.kill_sweep(world, scenario, stride=stride)
  print(f'{len(points)} points: {harness.tally(points)}')
  assert len(points) >= 8, 'the sweep reached too little'
  harness.check(world, points, _STEPS[scenario], leftovers=_LEFTOVERS[scenario])


@pytest.mark.slow
def test_killed_while_a_step_is_saved_again(world):
  """What is committed is not written over: there is nothing to lose."""
  calls = ['openat', 'mkdir', 'rename', 'unlink']
  points = harness.kill_sweep(world, 'save', calls, image='both')
  print(f'{len(points)} points: {harness.tally(points)}')
  assert points, 'the sweep reached nothing'
  assert not any(point.call in ('mkdir', 'rename') for point in points)
  harness.check(world, points, (_SAVED,))


@pytest.mark.slow
def test_killed_between_the_removals_of_an_old_checkpoint(world):
  """What is still listed is whole: a checkpoint leaves the list first."""
  points = harness.kill_sweep(world, 'save', ['unlink', 'unlinkat', 'rmdir'])
  print(f'{len(points)} points: {harness.tally(points)}')
  assert len(points) >= 4, 'the sweep reached too little'
  for point in points:
    for path in point.directory.glob('checkpoints/ckpt-*'):
      assert len(list(path.iterdir())) == 3, f'{point} left half of {path.name}'
  harness.check(world, points, _STEPS['save'])


@pytest.mark.slow
def test_an_old_checkpoint_that_cannot_be_removed_fails_no_save(world):
  calls = ['unlink', 'unlinkat', 'rmdir']
  points = harness.error_sweep(world, 'save', 'EACCES', calls)
  print(f'{len(points)} points: {harness.tally(points)}')
  name = f'checkpoints/ckpt-{_SAVED:08d}'
  committed = [p for p in points if (p.directory / name).exists()]
  assert len(committed) >= 3, 'the sweep reached too little'
  assert all('error' not in point.outcome for point in committed)
  harness.check(world, committed, (_SAVED,))


@pytest.mark.slow
@pytest.mark.parametrize('error', _ERRORS)
def test_a_save_is_refused_at_each_call(error, world):
  points = harness.error_sweep(world, 'save', error)
  print(f'{len(points)} points: {harness.tally(points)}')
  print(harness.endings(points))
  assert len(points) >= 25, 'the sweep reached too little'
  wrong = [str(point) for point in points if not _is_told(point)]
  harness.check(world, points, _STEPS['save'])
  assert not wrong, '\n'.join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize('error', _ERRORS)
@pytest.mark.parametrize('scenario', ['restore', 'export', 'flush'])
def test_others_are_refused_at_each_call(scenario, error, world):
  """They end or go on; in one place TensorFlow itself dies of it."""
  # Hundreds of calls, all alike, and errors that are handled alike.
  alike = scenario == 'export' or (scenario == 'restore' and error != 'EIO')
  most = 12 if alike else None
  points = harness.error_sweep(world, scenario, error, most=most)
  print(f'{len(points)} points: {harness.tally(points)}')
  print(harness.endings(points))
  assert len(points) >= 8, 'the sweep reached too little'
  foreign = [
    point for point in points if not (point.outcome or {}).get('tftrain', True)
  ]
  assert not foreign, '\n'.join(map(str, foreign))
  if scenario == 'export':
    assert all(map(_is_exported, points)), 'said to be exported, but is not'
  # What could not be tidied up is still there.
  leftovers = _LEFTOVERS[scenario] + 1
  harness.check(world, points, _STEPS[scenario], every=8, leftovers=leftovers)


@pytest.mark.slow
def test_a_good_checkpoint_outlives_a_lack_of_descriptors(world):
  """Too many open files say nothing about the one that could not be opened."""
  calls = ['openat']
  points = harness.error_sweep(world, 'restore', 'EMFILE', calls, image='both')
  assert len(points) >= 8, 'the sweep reached too little'
  harness.check(world, points, (_SAVED,), every=8, leftovers=1)


def _is_exported(point):
  """Whether an export that returned is there; one that raised may be."""
  target = point.directory / 'export' / str(_SAVED)
  returned = point.outcome is not None and 'error' not in point.outcome
  return target.is_dir() or not returned


def _is_told(point):
  """Whether a save ended well, or with an error that says what is left."""
  outcome = point.outcome
  if 'error' not in outcome or outcome['error'] == 'RunDirectoryError':
    return True
  last = max(
    int(path.name.removeprefix('ckpt-'))
    for path in point.directory.glob('checkpoints/ckpt-*')
  )
  named = re.search(r'last good checkpoint is at step (\d+)', outcome['text'])
  return (
    outcome['error'] == 'CheckpointError'
    and named is not None
    and int(named[1]) == last
  )

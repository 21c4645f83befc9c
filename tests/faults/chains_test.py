"""Chains of mishaps, drawn from a seed: the end is that of a quiet run."""

import random

import pytest

from tests.faults import faulty
from tests.faults import harness
from tftrain.checkpoint import format

_OPTIONS = {'steps': 80, 'checkpoint_every': 5, 'keep': 3, 'pause': 0.002}
_LENGTH = 8
_LIMITS = (0, 300, 1000, 2500, 4000, 6000, 9000)


@pytest.fixture(scope='module')
def quiet(server, tmp_path_factory):
  """How the run ends to which nothing happens."""
  options = {**_OPTIONS, 'pause': 0}
  ended = harness.life(server, tmp_path_factory.mktemp('quiet'), **options)
  assert ended['outcome'] == {'value': 80}
  return ended['end']


class _Chain:
  """A run and what happens to it."""

  def __init__(self, server, directory, seed):
    self._server = server
    self._directory = directory
    self._checkpoints = directory / 'checkpoints'
    self._draw = random.Random(seed)
    self._damaged = set()
    self.told = []

  def train_and_kill(self, **options):
    step = self._newest() + self._draw.randint(1, 20)
    return self._live(hold_at=step, **options)

  def flip_a_byte(self):
    path = self._victim()
    if path is not None:
      content = bytearray(path.read_bytes())
      content[self._draw.randrange(len(content))] ^= 1 << self._draw.randrange(
        8
      )
      path.write_bytes(content)

  def truncate(self):
    path = self._victim()
    if path is not None:
      content = path.read_bytes()
      path.write_bytes(content[: self._draw.randrange(len(content))])

  def delete_pointer(self):
    (self._checkpoints / 'checkpoint').unlink(missing_ok=True)

  def garble_pointer(self):
    if self._checkpoints.exists():
      garbage = self._draw.choice(
        [b'', b'\xff\x00', b'model_checkpoint_path: "']
      )
      (self._checkpoints / 'checkpoint').write_bytes(garbage)

  def fill_the_disk(self):
    limit = self._draw.choice(_LIMITS)
    self._live(file_limit=limit, hold_at=self._newest() + 15)

  def second_trainer(self):
    """The first waits meanwhile; the second one is refused."""
    step = self._newest() + 2
    first = self._server.start('train', hold_at=step, **_OPTIONS)
    first.work(self._directory)
    while True:
      message = first.expect('step')
      if message['step'] >= step:
        break
    second = harness.life(self._server, self._directory, **_OPTIONS)
    outcome = second['outcome']
    assert outcome['error'] == 'RunDirectoryError', outcome
    assert f'in use by pid {first.pid} ' in outcome['text'], outcome
    first.kill()
    first.join()

  def another_configuration(self):
    """Refused, and nothing is changed by it."""
    if not self._newest():
      return
    before = faulty.scan(self._directory)
    ended = harness.life(self._server, self._directory, **_OPTIONS, seed=1)
    outcome = ended['outcome']
    assert outcome.get('error') == 'CheckpointError', outcome
    assert 'is of another run' in outcome['text'], outcome
    assert faulty.scan(self._directory) == before

  def wrong_clock(self):
    self.train_and_kill(clock=self._draw.choice([-1, 1]) * 10**7)

  def finish(self):
    ended = harness.life(self._server, self._directory, **_OPTIONS)
    assert ended['outcome'] == {'value': 80}, ended['outcome']
    return ended['end']

  def happen(self):
    names = [name for name in vars(_Chain) if name[0] != '_']
    names = [name for name in names if name not in ('happen', 'finish')]
    # The first one is always a life, so that there is something to damage.
    name = self._draw.choice(names) if self.told else 'train_and_kill'
    self.told.append(name)
    getattr(self, name)()

  def _live(self, **options):
    return harness.life(self._server, self._directory, **_OPTIONS, **options)

  def _newest(self):
    steps = format.committed_steps(self._checkpoints)
    good = [step for step in steps if self._is_good(step)]
    return max(good, default=0)

  def _is_good(self, step):
    path = format.checkpoint_path(self._checkpoints, step)
    return (path.name, path.stat().st_ino) not in self._damaged

  def _victim(self):
    """A file of a checkpoint that is not the last good one, or None."""
    steps = format.committed_steps(self._checkpoints)
    good = [step for step in steps if self._is_good(step)]
    if len(good) < 2:
      return None
    path = format.checkpoint_path(self._checkpoints, self._draw.choice(good))
    self._damaged.add((path.name, path.stat().st_ino))
    return self._draw.choice(sorted(path.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(8))
def test_a_chain_of_mishaps_changes_nothing(seed, server, quiet, tmp_path):
  chain = _Chain(server, tmp_path, seed)
  for _ in range(_LENGTH):
    chain.happen()
  end = chain.finish()
  print(*chain.told, sep=', ')
  assert end == quiet
  assert not list(tmp_path.rglob('.tmp-*'))


@pytest.mark.slow
@pytest.mark.parametrize('limit', _LIMITS)
def test_a_full_disk_ends_a_life_with_an_error_of_ours(
  limit, server, quiet, tmp_path
):
  ended = harness.life(server, tmp_path, **_OPTIONS, file_limit=limit)
  outcome = ended['outcome']
  print(outcome)
  assert outcome.get('tftrain', True), outcome
  ended = harness.life(server, tmp_path, **_OPTIONS)
  assert ended['outcome'] == {'value': 80}
  assert ended['end'] == quiet

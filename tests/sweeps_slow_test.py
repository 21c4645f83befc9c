"""Sweeps under fire, and sweeps of real trials."""

import os
import random
import signal
import time

import pytest

from tests import sweeping
from tftrain.sweeps import leases
from tftrain.sweeps import plans
from tftrain.sweeps import results

pytestmark = pytest.mark.slow

_WORKERS = 8
_TRIALS = 200
_STEPS = 10


def _holders(sweep_dir):
  return [
    seen.process()
    for seen in leases.read(sweep_dir).values()
    if seen.state == 'running' and seen.process()
  ]


def _kill_some(sweep_dir, workers, generator):
  """Kills a worker or the process of a trial; returns whether it did."""
  trials = set(_holders(sweep_dir)) - {w.pid for w in workers}
  alive = [w.pid for w in workers if w.poll() is None]
  victims = generator.choice([some for some in (alive, sorted(trials)) if some])
  try:
    os.kill(generator.choice(victims), signal.SIGKILL)
  except ProcessLookupError:
    return 0
  return 1


@pytest.mark.timeout(580)
def test_each_trial_is_done_exactly_once_whoever_is_killed(tmp_path):
  sweep_dir = sweeping.plan(
    tmp_path,
    f"""
    STEPS = {_STEPS}
    SLEEP = 0.02
    Sweep.space = {{'LR': 'uniform(0, 1)'}}
    Sweep.search = 'random'
    Sweep.num_trials = {_TRIALS}
    Sweep.max_kills = 1000
    Sweep.lease_seconds = 5
    """,
  )
  generator = random.Random(0)
  workers = []
  kills = 0
  begun = time.monotonic()
  while set(sweeping.states(sweep_dir)) != {'done'}:
    workers = [w for w in workers if w.poll() is None]
    while len(workers) < _WORKERS:
      workers.append(sweeping.start('worker', f'--sweep_dir={sweep_dir}'))
    time.sleep(generator.uniform(0, 0.6))
    kills += _kill_some(sweep_dir, workers, generator)
  seconds = time.monotonic() - begun
  for worker in workers:
    worker.communicate(timeout=60)
  plan = plans.read(sweep_dir)
  attempts = 0
  for result in results.read(plan):
    assert result.status == 'done'
    assert result.facts['status'] == 'done'
    attempts += result.facts['attempts']
    steps = [line['step'] for line in result.metrics()]
    assert steps == list(range(1, _STEPS + 1)), result.directory
  assert kills > 50 and attempts > _TRIALS
  print(f'{kills} kills, {attempts} attempts, {seconds:.0f} s')

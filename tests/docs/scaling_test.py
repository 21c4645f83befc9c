"""The scaling page: its model against simulations of its parts."""

import numpy as np
import pytest

from benchmarks import scaling
from tests.support import paths


def ring_seconds(run, hosts):
  """Sends each part around the ring, message by message, twice."""
  clock = np.zeros(hosts)
  for _ in range(2 * (hosts - 1)):
    sent = clock + run.latency + run.gradient_mb / hosts / run.network_mb
    clock = np.maximum(sent, np.roll(sent, 1))  # what comes from the left
  return clock.max()


@pytest.mark.parametrize('hosts', [2, 3, 16])
def test_the_all_reduce_is_a_ring_and_a_vote(hosts):
  run = scaling.Run(gradient_mb=120, network_mb=900, latency=2e-4)
  vote = 2 * (hosts - 1) * run.latency
  assert run.all_reduce(hosts) == pytest.approx(ring_seconds(run, hosts) + vote)
  assert run.all_reduce(1) == 0


def share_lost(run, hosts, days, seed=0):
  """Simulates failures: how much of the time went without progress."""
  random = np.random.default_rng(seed)
  now, progress, end = 0.0, 0.0, days * 86400
  mean = 86400 / (hosts * run.failures)
  while now < end:
    until = random.exponential(mean)
    progress += until // run.checkpoint_every * run.checkpoint_every
    now += until + run.restart
  return 1 - progress / now


def test_what_failures_cost():
  run = scaling.Run(failures=0.02, restart=90, checkpoint_every=900)
  for hosts in (8, 64, 256):
    simulated = share_lost(run, hosts, days=40000 / hosts * 8)
    assert run.failing(hosts) == pytest.approx(simulated, rel=0.1)


def test_the_best_interval_costs_least():
  def cost(every):
    run = scaling.Run(checkpoint_every=every, failures=0.05, stall=2)
    return run.saving() + run.failing(64)

  run = scaling.Run(failures=0.05, stall=2)
  grid = np.geomspace(30, 30000, 400)
  least = min(grid, key=cost)
  assert run.best_interval(64) == pytest.approx(least, rel=0.05)


def test_limits_come_where_they_are_said_to():
  run = scaling.Run()
  for limit in scaling.LIMITS:
    hosts = scaling.first(run, limit)
    if hosts is not None and hosts > 1:
      assert limit.holds(run, hosts) and not limit.holds(run, hosts - 1)
  # A thousand rows are read in half a second; three hosts train in less.
  plain = {'batch_size': 1000, 'row': 1e-3, 'fixed': 1e-3, 'latency': 0}
  plain |= {'gradient_mb': 0, 'input_rows': 2000}
  data = next(l for l in scaling.LIMITS if 'data' in l.name)
  assert scaling.first(scaling.Run(**plain), data) is None
  assert scaling.first(scaling.Run(**plain, own_rows=0), data) == 3


def test_the_page_shows_what_the_model_says():
  page = paths.ROOT / 'docs' / 'scaling.md'
  shown = '\n'.join(line.rstrip() for line in scaling.table(scaling.Run(), 256))
  assert shown in page.read_text()

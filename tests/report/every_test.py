"""Every: an Action by the clock."""

from tests.support import loop_runs
from tests.support import small_tasks
import tftrain
from tftrain.report import every as every_lib


def test_every_by_the_clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(every_lib.time, 'monotonic', lambda: now[0])
  steps = loop_runs.Steps()
  every = tftrain.Every('10m', steps)
  for step in range(1, 8):
    now[0] += 240
    every(small_tasks.report(step, last_step=7))
  assert steps == [3, 6, 7]

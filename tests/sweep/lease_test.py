"""Leases: one worker a trial, taken over after the time is out."""

import os
import subprocess
import time

import pytest

from tests.support import paths
from tests.support import planned_sweeps
from tests.support import sweep_commands
from tftrain import errors
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import trial as trial_lib


def _elsewhere(plan, seconds):
  """As if a process on another machine ran trial 0, `seconds` ago."""
  path = plan.sweep_dir / 'leases' / '0000.running.elsewhere_1_1_0'
  os.rename(plan.sweep_dir / 'leases' / '0000.pending', path)
  then = time.time() - seconds
  os.utime(path, (then, then))


def test_a_trial_is_taken_over_when_its_lease_has_run_out_not_before(tmp_path):
  plan = planned_sweeps.planned(tmp_path, planned_sweeps.GRID)
  _elsewhere(plan, 50)
  with pytest.raises(errors.RunDirectoryError) as raised:
    trial_lib.run(plan.sweep_dir, 0, lambda trial: 0)
  assert 'is run by pid 1 on elsewhere, which gave a sign' in str(raised.value)
  os.rename(
    plan.sweep_dir / 'leases' / '0000.running.elsewhere_1_1_0',
    plan.sweep_dir / 'leases' / '0000.pending',
  )
  _elsewhere(plan, 70)

  def work(trial):
    planned_sweeps.write_metrics(trial.directory, [(1, 0.5)])
    return 0

  assert trial_lib.run(plan.sweep_dir, 0, work) == 0
  assert sweep_commands.states(plan.sweep_dir) == ['done', 'pending']


def test_who_lost_a_trial_leaves_at_once_and_writes_nothing(slow_sweep):
  process = subprocess.Popen(
    [*sweep_commands.TARGET, f'--sweep_dir={slow_sweep}', '--trial_index=0'],
    cwd=paths.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  lines = slow_sweep / '0000_LR=0.1' / 'metrics.jsonl'
  sweep_commands.until(lines.exists, 'a line')
  seen = _lease_lib.find(slow_sweep, 0)
  before = lines.read_text()
  assert _lease_lib.take(seen) is not None
  _, err = process.communicate(timeout=30)
  assert process.returncode == 3 and 'took this trial over' in err
  # One line may have been on its way when the lease changed hands.
  assert len(lines.read_text().splitlines()) <= len(before.splitlines()) + 1
  assert sweep_commands.states(slow_sweep)[0] == 'running'


def test_of_many_who_take_a_trial_one_gets_it(tmp_path):
  plan = planned_sweeps.planned(tmp_path, planned_sweeps.GRID)
  seen = _lease_lib.find(plan.sweep_dir, 0)
  taken = [_lease_lib.take(seen) for _ in range(5)]
  assert [lease is not None for lease in taken] == [True] + [False] * 4
  late = _lease_lib.Lease(seen.path)
  with pytest.raises(_lease_lib.LostError):
    late.end('done')

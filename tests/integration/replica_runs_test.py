"""1, 2 and 4 replicas: the same results, also with an overflow on one."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support import paths
from tests.support import replica_runs
from tests.support import worker_processes


def assert_skipped(runs, precision, counts):
  one = runs[0]
  assert [run.pop('replicas') for run in runs] == counts
  for run in runs:
    assert run['finite'], 'a weight is not finite'
    assert run['kept'], 'the step was not left out whole'
    assert run['moved']
    assert run['updates'] == [1, 2, 2, 3, 4, 5]
    assert run['skipped'] == [0, 0, 1, 1, 1, 1]
    half = precision == 'mixed_float16'
    assert run['scales'] == ([1, 1, 0.5, 0.5, 0.5, 0.5] if half else [0] * 6)
    # Halves are rounded to 3e-4 and 2e-3; so are their sums' parts.
    np.testing.assert_allclose(run['weights'], one['weights'], atol=4e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
  'precision',
  [
    'mixed_float16',
    pytest.param('mixed_bfloat16', marks=pytest.mark.slow),
  ],
)
def test_infinities_on_one_replica_skip_the_step_on_both(precision):
  runs = [replica_runs.overflow(precision, count) for count in (1, 2)]
  assert_skipped(runs, precision, [1, 2])


@pytest.mark.slow
def test_four_replicas_are_one():
  ended = subprocess.run(
    [sys.executable, '-m', 'tests.support.replica_runs', '4'],
    stdout=subprocess.PIPE, text=True, cwd=paths.ROOT, timeout=240,
  )  # fmt: skip
  assert ended.returncode == 0
  found = json.loads(ended.stdout)
  for precision in ('mixed_float16', 'mixed_bfloat16'):
    assert_skipped(found[precision], precision, [1, 2, 4])
  one, *others = found['digits']
  for losses in others:
    np.testing.assert_allclose(losses[:6], one[:6], atol=1e-6)
    np.testing.assert_allclose(losses, one, atol=1e-5)
  again, once_more, alone = found['dropout']
  assert again == once_more
  assert np.abs(np.subtract(again, alone)).max() > 1e-3


@pytest.mark.slow
def test_two_workers_are_one_device_and_with_dropout_two():
  module = 'tests.support.replica_runs'
  found, _ = worker_processes.printed_by_two(module, replica_runs.WORKERS)
  one = replica_runs.digits(1)
  np.testing.assert_allclose(found['digits'][:6], one[:6], atol=1e-6)
  np.testing.assert_allclose(found['digits'], one, atol=1e-5)
  again, once_more = found['dropout']
  assert again == once_more
  # Masks belong to replicas, wherever these are.
  two = replica_runs.digits(2, 0.3)
  np.testing.assert_allclose(again[:6], two[:6], atol=1e-6)
  np.testing.assert_allclose(again, two, atol=1e-5)

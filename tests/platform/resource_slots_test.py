"""Resource slots: cores and GPUs are dealt out to trials."""

import os
import subprocess

import pytest

from tftrain import errors
from tftrain.platform import resource_slots


def test_cores_and_gpus_are_dealt_out(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 2, 3, 6})
  found = resource_slots.make(2, gpus_per_trial=2, gpus=['0', '1', '2', '3'])
  assert [slot.cores for slot in found] == [{0, 2, 6}, {1, 3}]
  assert [slot.environment() for slot in found] == [
    {'CUDA_VISIBLE_DEVICES': '0,1'},
    {'CUDA_VISIBLE_DEVICES': '2,3'},
  ]
  assert [slot.cores for slot in resource_slots.make(6, 0, [])][5] == {0}
  assert resource_slots.make(1, None, [])[0].environment() == {}
  assert resource_slots.make(1, None, ['7'])[0].gpus == ('7',)
  with pytest.raises(errors.ConfigError, match='with 1 GPUs each, but there'):
    resource_slots.make(2, None, ['7'])


def test_the_process_of_a_trial_stays_on_its_cores():
  with subprocess.Popen(['sleep', '60']) as process:
    cores = frozenset([min(os.sched_getaffinity(0))])
    resource_slots.pin(process.pid, resource_slots.Slot(cores))
    assert os.sched_getaffinity(process.pid) == cores
    process.kill()

"""LossSpike: finds a spike and saves its memory."""

import json

import pytest

from tests.support import small_tasks
import tftrain
from tftrain import errors


def test_a_spike_is_found_and_its_memory_is_saved():
  spike = tftrain.actions.LossSpike(3.0, reports=3)
  for step, loss in enumerate((1.0, 1.2, float('nan'), 0.9, 2.5)):
    spike(small_tasks.report(step + 1, scalars={'loss': loss}))
  other = tftrain.actions.LossSpike(3.0, reports=3)
  other.write_state(json.loads(json.dumps(spike.read_state())))
  other(small_tasks.report(7, source='eval/test', scalars={'loss': 99.0}))
  with pytest.raises(
    errors.LossSpikeError, match='step 7: the loss is 9'
  ) as info:
    other(small_tasks.report(7, scalars={'loss': 9.0}))
  assert info.value.step == 7

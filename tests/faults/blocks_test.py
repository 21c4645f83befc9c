"""Killed between and within blocks of steps that XLA compiled."""

import random

import pytest

from tests.faults import lives

_STEPS, _LIVES = 20_000, 8

_RECIPE = f"""
import tests.support.recipes

Experiment.task = @recipes.make_normalized_task
Experiment.train_data = @recipes.train_data
Experiment.steps = {_STEPS}
Experiment.log_every = 100
Experiment.checkpoint_every = 500
Experiment.export = False
Experiment.update = @Update()
Update.jit = 'block'
Update.ema = 0.9
"""


@pytest.mark.slow
def test_killed_in_any_block_it_ends_as_never_killed(commands, tmp_path):
  runs = []
  for name in ('quiet', 'killed'):
    (tmp_path / name).mkdir()
    runs.append(lives.Run(commands, tmp_path / name, _RECIPE, _STEPS))
  quiet, killed = runs
  assert 'jit=block' in quiet.finish().stderr
  draw = random.Random(0)
  for _ in range(_LIVES):
    killed.killed_at(killed.last_reported() + draw.randrange(300, 2000))
  assert len(killed.steps()) == 3 and max(killed.steps()) < _STEPS
  killed.finish()
  assert killed.end() == quiet.end()
  assert not killed.leftovers()

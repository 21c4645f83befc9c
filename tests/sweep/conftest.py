"""A sweep that is slow enough to be interrupted."""

import pytest

from tests.support import planned_sweeps
from tests.support import sweep_commands


@pytest.fixture
def slow_sweep(tmp_path):
  return sweep_commands.plan(
    tmp_path,
    f"""
    SLEEP = 0.1
    STEPS = 12
    {planned_sweeps.GRID}""",
  )

"""The undisturbed run and the fork server, once for each worker."""

import pytest

from tests.faults import harness
from tests.faults import lives


@pytest.fixture(scope='session')
def server():
  server = harness.Server()
  yield server
  server.close()


@pytest.fixture(scope='session')
def world(server, tmp_path_factory):
  return harness.World(server, tmp_path_factory.mktemp('world'))


@pytest.fixture
def run(commands, tmp_path):
  """A run that was never started."""
  return lives.Run(commands, tmp_path)


@pytest.fixture(scope='session')
def quiet(commands, tmp_path_factory):
  """The end of the run to which nothing happens."""
  run = lives.Run(commands, tmp_path_factory.mktemp('quiet'))
  run.finish()
  return run.end()


@pytest.fixture(scope='session')
def killed(commands, tmp_path_factory):
  """A run that was killed after step 45."""
  run = lives.Run(commands, tmp_path_factory.mktemp('killed'))
  run.killed_at(45)
  assert len(run.steps()) == 3
  return run

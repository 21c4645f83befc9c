"""The undisturbed run and the fork server, once for each worker."""

import pytest

from tests.faults import harness


@pytest.fixture(scope='session')
def server():
  server = harness.Server()
  yield server
  server.close()


@pytest.fixture(scope='session')
def world(server, tmp_path_factory):
  return harness.World(server, tmp_path_factory.mktemp('world'))

"""Records that several tests of data read."""

import pytest

from tests.support import stored_examples


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return stored_examples.Stored('records', tmp_path_factory.mktemp('records'))

"""A module of the user's own for each test of config."""

import pytest

from tests.support import gin_texts


@pytest.fixture(autouse=True)
def _fresh(own_directory):
  """Each test registers mine.points anew."""
  (own_directory / 'mine.py').write_text(gin_texts.MODULE.format(name='mine'))

"""Names of signals that make no sense: refused."""

import pytest

import tftrain
from tftrain import errors


def test_names_of_signals_that_make_no_sense():
  def make(**options):
    with tftrain.platform.stop_on_signal(lambda: None, **options):
      pass

  for options, text in (
    ({'stop': ['SIGFOO']}, "'SIGFOO' is no signal"),
    ({'stop': ['SIGKILL']}, "'SIGKILL' is no signal that can be caught"),
    ({'save': ['SIGTERM']}, 'SIGTERM is to stop and to save'),
  ):
    with pytest.raises(errors.ConfigError, match=text):
      make(**options)

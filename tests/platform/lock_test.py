"""The lock of a model_dir: one trainer at a time."""

import pathlib

import pytest

from tftrain import errors
from tftrain.platform import lock


def test_one_model_dir_has_one_trainer(tmp_path):
  with lock.lock(tmp_path):
    with pytest.raises(errors.RunDirectoryError, match=r'in use by pid \d+ on'):
      with lock.lock(tmp_path):
        pass
  with lock.lock(tmp_path):
    assert pathlib.Path(tmp_path, '.lock').exists()

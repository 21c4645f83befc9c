"""One TensorFlow process per worker, with two logical CPU devices."""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import keras
import pytest

from tests import commands as commands_lib
from tftrain import strategies


def pytest_configure(config):
  del config
  strategies.set_local_devices(2)


@pytest.fixture(autouse=True)
def fresh_seed():
  """Every test starts from the same global seeds."""
  keras.utils.set_random_seed(0)


@pytest.fixture(scope='session')
def commands():
  commands = commands_lib.Commands()
  yield commands
  commands.close()

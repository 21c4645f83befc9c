"""One TensorFlow process per worker, with two logical CPU devices."""

import os
import sys

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import gin
import keras
import pytest

from tests.support import commands as commands_lib
from tftrain.distribute import strategy as strategy_lib
from tftrain.step import update_options


def pytest_configure(config):
  del config
  strategy_lib.set_local_devices(2)
  # To compile with XLA takes a second or more for each of a thousand Trainers:
  # in this process only the tests that ask for it do.
  jit = os.environ.get('TFTRAIN_TEST_JIT', 'off')
  update_options.Update.__init__.__kwdefaults__['jit'] = jit


@pytest.fixture(autouse=True)
def fresh_seed():
  """Every test starts from the same global seeds."""
  keras.utils.set_random_seed(0)


@pytest.fixture
def own_directory(tmp_path, monkeypatch):
  """A directory, an import path and a gin configuration of a test's own."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
  gin.clear_config()
  gin.enter_interactive_mode()  # the same names may be registered anew
  yield tmp_path
  gin.exit_interactive_mode()
  gin.clear_config()
  for name, module in list(sys.modules.items()):
    if str(getattr(module, '__file__', '')).startswith(str(tmp_path)):
      del sys.modules[name]


@pytest.fixture(scope='session')
def commands():
  commands = commands_lib.Commands()
  yield commands
  commands.close()

"""pdb in a step, as docs/diagnosis.md says."""

import os
import pdb
import subprocess
import sys

import gin
import pytest
import tensorflow as tf

from tests.support import nan_task
from tests.support import paths

_RECIPE = """
import tests.integration.pdb_test
import tests.support.nan_task
Experiment.task = @pdb_test.make_task
Experiment.train_data = @nan_task.data
Experiment.steps = 20
Experiment.export = False
Experiment.strategy = 'one_device'
"""


class Watched(nan_task.Logarithm):
  """Stops where a loss is NaN."""

  def loss(self, batch, training):
    result = super().loss(batch, training)
    if tf.reduce_any(tf.math.is_nan(result.values)):
      pdb.set_trace()
    return result


@gin.register(module='pdb_test')
def make_task():
  plain = nan_task.make_task()
  return Watched(plain.model, plain._loss, plain.optimizer)


@pytest.mark.slow
def test_pdb_stops_in_a_loss_and_shows_real_values(tmp_path):
  (tmp_path / 'a.gin').write_text(_RECIPE)
  command = [sys.executable, '-m', 'tftrain', '--mode=train', '--run_eagerly']
  command += [f'--gin_file={tmp_path / "a.gin"}']
  command += [f'--model_dir={tmp_path / "run"}']
  typed = [
    'p training',
    'p batch[0].shape',
    'p int(tf.reduce_sum(tf.cast(batch[0] < 0, tf.int32)))',
    'p bool(tf.reduce_any(tf.math.is_nan(result.values)))',
    'where',
    'continue',
  ]
  ended = subprocess.run(
    command,
    cwd=paths.ROOT,
    input='\n'.join(typed) + '\n',
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
  )
  said = [part.strip() for part in ended.stdout.split('(Pdb) ')]
  assert 'return result' in said[0], ended
  assert said[1:5] == ['True', 'TensorShape([8, 6])', '1', 'True']
  assert 'pdb_test.py' in said[5] and 'train_step()' in said[5]
  assert ended.returncode == 1
  assert 'error: step ' in ended.stderr and 'loss nan' in ended.stderr

"""examples/own_loop: a training loop of the user's own."""

import functools
import runpy
import subprocess
import sys

from absl import flags
import pytest
import tensorflow as tf

from tests.support import paths
from tests.support import small_tasks
from tftrain.checkpoint import format

_OWN_LOOP = str(paths.ROOT / 'examples' / 'own_loop.py')


@pytest.fixture
def own_loop(monkeypatch):
  """Runs examples/own_loop.py with flags; its module keeps no state."""
  values = flags.FlagValues()  # of its own: the launcher has a --model_dir too
  for kind in ('DEFINE_string', 'DEFINE_integer'):
    define = functools.partial(getattr(flags, kind), flag_values=values)
    monkeypatch.setattr(flags, kind, define)
  program = runpy.run_path(_OWN_LOOP)

  def run(*arguments):
    values.unparse_flags()
    return program['main'](values(['own_loop.py', *arguments]))

  return run


def newest(model_dir):
  directory = model_dir / 'checkpoints'
  step = format.committed_steps(directory)[-1]
  path = format.checkpoint_path(directory, step)
  return format.read_checkpoint(path)[1]


@pytest.mark.slow
def test_own_loop_goes_on_from_its_checkpoint(own_loop, tmp_path, capsys):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  assert own_loop(f'--model_dir={whole}', '--steps=200') == 0
  assert own_loop(f'--model_dir={parts}', '--steps=100') == 0
  capsys.readouterr()
  assert own_loop(f'--model_dir={parts}', '--steps=200') == 0
  said = capsys.readouterr().out
  assert said.startswith('Resumed from step 100\nstep   200  loss 0.')
  small_tasks.assert_same_bits(newest(whole), newest(parts))


@pytest.mark.slow
def test_own_loop_shows_what_it_gets_wrong(own_loop, tmp_path):
  own_loop(f'--model_dir={tmp_path}', '--steps=50', '--strategy=mirrored')
  tags = set()
  for path in tmp_path.glob('eval/test/events*'):
    for record in tf.data.TFRecordDataset(str(path)):
      event = tf.compat.v1.Event.FromString(record.numpy())
      tags |= {value.tag for value in event.summary.value}
  assert {'loss', 'accuracy', 'wrong', 'wrong_answers'} <= tags


@pytest.mark.slow
def test_own_loop_is_a_program(tmp_path):
  command = [sys.executable, _OWN_LOOP, f'--model_dir={tmp_path}']
  result = subprocess.run(
    [*command, '--steps=1000'],
    cwd=tmp_path,
    env={'PYTHONPATH': str(paths.ROOT), 'CUDA_VISIBLE_DEVICES': ''},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  assert 'step  1000  loss 0.' in result.stdout

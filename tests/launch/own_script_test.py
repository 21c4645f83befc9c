"""A script of the user's own: all flags, describe and trust."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import paths

_SCRIPT = """
import sys
import gin
import tests.support.recipes
import tftrain


@gin.register(module='script')
def make_task(width=3):
  return tests.support.recipes.make_task(width=width)


def main(job):
  print('before', job.experiment.steps, job.model_dir.name)
  result = job.train()
  print('after', result.step, sorted(job.texts()))
  return 7 if '--quiet' in sys.argv else None


if __name__ == '__main__':
  tftrain.launch.run(main)
"""
_GIN = """
STEPS = 4

Experiment.task = @script.make_task
Experiment.train_data = @recipes.train_data
Experiment.eval_data = @recipes.test_data
Experiment.steps = %STEPS
Experiment.export = False
script.make_task.width = 5
"""
_LAYER = """
import gin
import keras


@gin.configurable(module='layers')
class {name}(keras.{base}):
  def __init__(self, units=1):
    super().__init__()
    self.units = units
"""


def program(tmp_path, *arguments):
  """Runs the user's script as a process of its own."""
  (tmp_path / 'train.py').write_text(_SCRIPT)
  (tmp_path / 'a.gin').write_text(_GIN)
  return subprocess.run(
    [sys.executable, tmp_path / 'train.py', *arguments],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
    env={**os.environ, 'PYTHONPATH': str(paths.ROOT)},
  )


@pytest.mark.slow
def test_a_script_of_ones_own_has_all_the_flags(tmp_path):
  arguments = ['--gin_file=a.gin', '--model_dir=run', '--gin.STEPS=6']
  ended = program(tmp_path, *arguments, '--config_trust=data')
  assert ended.returncode == 0, ended
  assert 'before 6 run\n' in ended.stdout
  assert "after 6 ['config.gin', 'operative_config.gin']\n" in ended.stdout
  assert 'make_task.width = 5' in (tmp_path / 'run/config.gin').read_text()


@pytest.mark.slow
def test_a_script_gives_the_exit_code_and_other_modes_are_as_they_are(tmp_path):
  arguments = ['--gin_file=a.gin', '--model_dir=run']
  ended = program(tmp_path, *arguments, '--quiet')
  assert ended.returncode == 7, ended
  ended = program(tmp_path, *arguments, '--mode=eval')
  assert ended.returncode == 0, ended
  assert 'before' not in ended.stdout
  assert 'Evaluated the checkpoint of step 4.' in ended.stdout
  ended = program(tmp_path, '--gin_file=b.gin', '--model_dir=run')
  assert ended.returncode == 2 and 'Traceback' not in ended.stderr
  assert "error: --gin_file: no file 'b.gin'" in ended.stderr


def test_describe_answers_people_and_programs(commands, tmp_path):
  arguments = ['--gin_file=configs/digit_records.gin', '--mode=describe']
  arguments += ['--gin.STEPS=7', '--strategy=one_device']
  shown = commands.run(*arguments)
  assert shown.code == 0, shown
  lines = [line.split() for line in shown.stdout.splitlines()]
  assert ['strategy', '=', "'one_device'", '--strategy'] in lines
  rate = 'learning_rate = 0.002 configs/digit_records.gin:11 (%LEARNING_RATE,'
  assert [*rate.split(), 'configs/optimizers/adam.gin:10)'] in lines
  assert "eval_data = {'test': @eval/digit_records.data}" in shown.stdout
  for_programs = commands.run(*arguments, '--format=json')
  found = json.loads(for_programs.stdout.splitlines()[-1])
  assert found['steps'] == 7
  steps = found['recipe']['parameters']['steps']
  assert (steps['source'], steps['macro']) == ('--gin.STEPS', 'STEPS')


def test_flags_of_gin_train(commands, tmp_path):
  arguments = ['--gin_file=configs/digits.gin', f'--model_dir={tmp_path}/run']
  arguments += [
    '--gin.Experiment.export=False',
    '--gin.digits.test_data.batch_size=90',
  ]
  ended = commands.run(*arguments, '--gin.STEPS=2', '--mode=train')
  assert ended.code == 0, ended
  config = (tmp_path / 'run/config.gin').read_text()
  assert 'test_data.batch_size = 90' in config and 'STEPS = 2' in config
  wrong = commands.run(*arguments, '--gin.STEPS=two')
  assert wrong.error == (
    '--gin.STEPS=two: not a gin value; strings need quotes: '
    '--gin.STEPS=\'"two"\''
  )


def test_data_is_refused_an_import_before_it_runs(commands, tmp_path):
  (tmp_path / 'evil.py').write_text('open("ran", "w").close()\n')
  (tmp_path / 'a.gin').write_text('import evil\n')
  arguments = ['--gin_file=a.gin', f'--model_dir={tmp_path}/run']
  ended = commands.run(*arguments, '--config_trust=data', cwd=tmp_path)
  assert ended.code == 2 and ended.error.startswith("a.gin:1: 'import evil'")
  assert not (tmp_path / 'ran').exists()
  trusted = commands.run(*arguments, cwd=tmp_path)
  assert trusted.error.startswith('required: Experiment.task')
  assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
  ('name', 'base', 'kind'),
  [('Scale', 'layers.Layer', 'layer'), ('Net', 'Model', 'model')],
)
def test_gin_configurable_on_a_keras_layer_is_found(
  name, base, kind, commands, tmp_path
):
  (tmp_path / 'layers.py').write_text(_LAYER.format(name=name, base=base))
  (tmp_path / 'a.gin').write_text('import layers\n')
  arguments = ['--gin_file=a.gin', f'--model_dir={tmp_path}/run']
  ended = commands.run(*arguments, cwd=tmp_path)
  assert ended.error == (
    f'layers.{name} is a Keras {kind}: decorate it with @gin.register, not '
    '@gin.configurable, which breaks its construction and get_config'
  )
  right = (
    (tmp_path / 'layers.py').read_text().replace('configurable', 'register')
  )
  (tmp_path / 'layers.py').write_text(right)
  ended = commands.run(*arguments, cwd=tmp_path)
  assert ended.error.startswith('required: Experiment.task')

"""Every configuration that ships trains two steps, and refuses a typo."""

import pathlib

import pytest

from tests import config_test

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIGS = sorted(
  str(path.relative_to(_ROOT)) for path in (_ROOT / 'configs').rglob('*.gin')
)

commands = config_test.commands


def test_there_are_configurations():
  assert 'configs/digits.gin' in _CONFIGS


@pytest.mark.parametrize('config', _CONFIGS)
def test_it_trains_two_steps_and_refuses_a_typo(config, commands, tmp_path):
  arguments = (f'--gin_file={config}', f'--model_dir={tmp_path / "run"}')
  typo = commands.run(*arguments, '--gin_bindings=Experiment.stepz = 2')
  assert typo['code'] == 2
  assert "did you mean 'steps'?" in typo['stderr']
  assert not (tmp_path / 'run').exists()
  result = commands.run(*arguments, '--gin_bindings=STEPS = 2')
  assert result['code'] == 0, result
  assert 'Done: step 2 of 2.' in result['stdout']

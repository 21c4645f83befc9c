"""Every configuration that ships trains two steps, and refuses a typo."""

import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIGS = sorted(
  str(path.relative_to(_ROOT))
  for path in (_ROOT / 'configs').rglob('*.gin')
  if path.parent.name != 'sweeps'  # sweeps_slow_test runs those
)


def test_there_are_configurations():
  assert 'configs/digits.gin' in _CONFIGS


# A part of the suite; the rest takes long to build and runs with --all.
_QUICK = ('configs/digits.gin',)


@pytest.mark.parametrize(
  'config',
  [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow)
    for name in _CONFIGS
  ],
)
def test_it_trains_two_steps_and_refuses_a_typo(config, commands, tmp_path):
  arguments = (f'--gin_file={config}', f'--model_dir={tmp_path / "run"}')
  typo = commands.run(*arguments, '--gin_bindings=Experiment.stepz = 2')
  assert typo.code == 2
  assert "did you mean 'steps'?" in typo.stderr
  assert not (tmp_path / 'run').exists()
  bindings = ['STEPS = 2', 'Experiment.export = @Export()']
  bindings.append('Export.fresh = False')
  arguments += tuple(f'--gin_bindings={binding}' for binding in bindings)
  result = commands.run(*arguments)
  assert result.code == 0, result
  assert 'Done: step 2 of 2.' in result.stdout

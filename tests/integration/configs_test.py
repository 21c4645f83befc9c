"""The configurations that ship: each trains two steps, and refuses a typo."""

import re

import pytest

from tests.support import paths

_CONFIGS = sorted(
  str(path.relative_to(paths.ROOT))
  for path in (paths.ROOT / 'configs').glob('*.gin')
)


def test_there_are_configurations():
  assert 'configs/digits.gin' in _CONFIGS


def test_every_file_says_what_it_needs_and_what_is_changed():
  found = sorted((paths.ROOT / 'configs').rglob('*.gin'))
  assert len(found) > len(_CONFIGS)
  for path in found:
    header, _, rest = path.read_text('utf-8').partition('\n\n')
    assert '# Required: ' in header, path
    assert '# Commonly changed: ' in header, path
    changed = header.partition('# Commonly changed: ')[2]
    for macro in re.findall(r'\b[A-Z][A-Z_]+\b', changed.partition('.\n')[0]):
      texts = [rest, *(p.read_text('utf-8') for p in _included(path, rest))]
      assert any(f'\n{macro} = ' in f'\n{text}' for text in texts), macro


def _included(path, text):
  for name in re.findall(r"include '(.+)'", text):
    beside = path.parent / name
    below = beside if beside.exists() else paths.ROOT / 'configs' / name
    yield below
    yield from _included(below, below.read_text('utf-8'))


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

"""Gin files and names that are none, or mean harm."""

import pytest

pytestmark = pytest.mark.slow

_FILES = {
  'a list 5,000 deep': b'Experiment.actions = ' + b'[' * 5000 + b']' * 5000,
  'no text': b'\xff\xfe\x00\x81' * 50,
  'a zero': b'Experiment.keep = 1\x00',
  'a bracket left open': b'Experiment.keep = [1, 2\n',
  'a quote left open': b"Experiment.strategy = '''one_device\n",
  'a million letters': b'Experiment.keep = ' + b'x' * 10**6,
  'a call': b'Experiment.keep = open("/etc/passwd")\n',
  'a number that is none': b'Experiment.keep = 1e999999\n',
  'a text for a number': b"Experiment.keep = '3'\n",
  'a key that is none': b'Experiment.kep = 3\n',
}


@pytest.mark.parametrize('what', _FILES)
def test_a_gin_file_that_is_none_is_one_line(what, run):
  with open(run.directory / 'recipe.gin', 'ab') as recipe:
    recipe.write(_FILES[what])
  ended = run.live()
  assert ended.code == 2, ended
  assert 'recipe.gin' in ended.error
  assert len(ended.error) < 600
  assert not run.model_dir.exists()


@pytest.mark.parametrize(
  'name', ['', '..', '../x', '/tmp/x', '.hidden', '-x', 'a b', 'x' * 300, 'ä']
)
def test_names_that_leave_the_run_are_refused(name, run):
  before = sorted(path.name for path in run.directory.iterdir())
  ended = run.live(f'Experiment.eval_data = {{{name!r}: @mishaps.eval_data}}')
  assert ended.code == 2
  assert f'{name!r} cannot name a directory' in ended.error
  assert sorted(path.name for path in run.directory.iterdir()) == before


def test_secrets_are_not_in_what_is_written(run):
  run.finish(
    "mishaps.make_task.api_key = 'sesame'",
    'Experiment.steps = 10',
  )
  run_json = (run.model_dir / 'run.json').read_text()
  assert 'sesame' not in run_json
  assert '[redacted]' in run_json

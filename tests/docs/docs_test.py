"""The documentation: its programs run, its gin files load."""

import pathlib
import re
import runpy
import shlex

from absl import flags
import gin
import pytest

from tests.support import paths
from tftrain import errors
from tftrain.config import loader
from tftrain.launch import command as command_lib
from tftrain.launch import flags as flags_lib

_PAGES = sorted([*paths.ROOT.glob('*.md'), *paths.ROOT.glob('docs/*.md')])
_LANGUAGES = {'', 'python', 'gin', 'sh', 'text', 'error'}
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r'# (\w+\.(?:py|gin))\n')
_FOLDERS = 'benchmarks|configs|docs|examples|scripts|tests|tftrain'
_PATH = re.compile(rf'(?<![\w/])(?:{_FOLDERS})/[\w/]+(?:\.\w+)?')


def _blocks(page, language):
  """(line number of its first line, text) of each block in a language."""
  text = page.read_text('utf-8')
  return [
    (text[: match.start(2)].count('\n') + 1, match[2])
    for match in _FENCE.finditer(text)
    if match[1] == language
  ]


def _pages_with(language, slow=()):
  pages = [page for page in _PAGES if _blocks(page, language)]
  assert pages, f'no page has a {language} block'
  return pytest.mark.parametrize(
    'page',
    [
      pytest.param(
        page,
        id=page.name,
        marks=[pytest.mark.slow] if page.name in slow else [],
      )
      for page in pages
    ],
  )


pytestmark = pytest.mark.usefixtures('own_directory')


def _save_named_files(page):
  """Blocks that begin with `# name.py` or `# name.gin` are such files."""
  for language in ('python', 'gin'):
    for _, text in _blocks(page, language):
      if name := _FILE_NAME.match(text):
        pathlib.Path(name[1]).write_text(text, 'utf-8')


def _run_program(page):
  """Runs a page as one file, in which lines have the numbers of the page."""
  _save_named_files(page)
  lines = [''] * len(page.read_text('utf-8').splitlines())
  for number, text in _blocks(page, 'python'):
    if not _FILE_NAME.match(text):
      block = text.splitlines()
      lines[number - 1 : number - 1 + len(block)] = block
  program = pathlib.Path(f'{page.stem}_page.py')
  program.write_text('\n'.join(lines) + '\n', 'utf-8')
  return runpy.run_path(str(program))


def _load(gin_file, bindings=()):
  """What `tftrain` does before its first step."""
  gin.clear_config()
  experiment = loader.load([str(gin_file)], bindings)
  experiment.prepare(pathlib.Path('runs/unused'))
  loader.check_used()


@_pages_with('python', slow=('tutorial.md', 'step.md', 'inputs.md'))
def test_the_python_of_a_page_runs(page):
  _run_program(page)


def test_the_program_of_the_readme_learns_the_digits(capsys):
  _run_program(paths.ROOT / 'README.md')
  accuracy = float(capsys.readouterr().out.splitlines()[-1])
  assert 0.93 < accuracy < 0.99


def test_the_program_of_the_readme_has_thirteen_lines():
  ((_, program),) = _blocks(paths.ROOT / 'README.md', 'python')
  assert len([line for line in program.splitlines() if line]) == 13
  assert program in (paths.ROOT / 'docs' / 'tutorial.md').read_text('utf-8')


@_pages_with('gin', slow=('configuration.md',))
def test_the_gin_of_a_page_loads(page):
  """A block without an Experiment.task is an addition to digits.gin."""
  _save_named_files(page)
  for number, text in _blocks(page, 'gin'):
    if 'task = ' not in text and 'include ' not in text:
      text = f"include 'digits.gin'\n{text}"
    path = pathlib.Path(f'{page.stem}_{number}.gin')
    path.write_text(text, 'utf-8')
    _load(path)


def test_the_readme_shows_the_whole_of_the_digits_configuration():
  config_text = (paths.ROOT / 'configs' / 'digits.gin').read_text('utf-8')
  _, _, bare = config_text.partition('\n\n')
  ((_, shown),) = _blocks(paths.ROOT / 'README.md', 'gin')
  assert shown == bare


@_pages_with('error')
def test_an_error_reads_as_the_page_says(page):
  for _, text in _blocks(page, 'error'):
    for example in text.strip().split('\n\n'):
      binding, message = example.split('\n')
      with pytest.raises(errors.ConfigError) as raised:
        _load('configs/digits.gin', [binding])
      assert str(raised.value) == message


@_pages_with('sh')
def test_commands_name_files_and_flags_that_exist(page):
  for _, text in _blocks(page, 'sh'):
    for command in text.replace('\\\n', ' ').splitlines():
      for path in _PATH.findall(command):
        assert (paths.ROOT / path).exists(), path
      words = shlex.split(command, comments=True)
      if words[:3] == ['python', '-m', 'tftrain']:
        _check_command(words[3:])


def _check_command(words):
  (_, *words), _ = command_lib.rewritten(['tftrain', *words])
  known = flags.FLAGS.flags_by_module_dict()[flags_lib.__name__]
  given = [word.removeprefix('--').partition('=') for word in words]
  for name, _, _ in given:
    assert name in {flag.name for flag in known}, name
  values = [(name, value) for name, _, value in given]
  (gin_file,) = [value for name, value in values if name == 'gin_file']
  _load(gin_file, [value for name, value in values if name == 'gin_bindings'])


def test_every_flag_is_documented_and_every_documented_flag_exists():
  page = (paths.ROOT / 'docs' / 'configuration.md').read_text('utf-8')
  shown = set(re.findall(r'^\| `--(\w+)` \|', page, re.MULTILINE))
  known = flags.FLAGS.flags_by_module_dict()[flags_lib.__name__]
  assert shown == {flag.name for flag in known}


@pytest.mark.parametrize('page', _PAGES, ids=lambda page: page.name)
def test_a_page_marks_its_blocks_and_links_to_files_that_exist(page):
  text = page.read_text('utf-8')
  assert {match[1] for match in _FENCE.finditer(text)} <= _LANGUAGES
  assert text.count('```') == 2 * len(_FENCE.findall(text))
  for target in re.findall(r'\]\(([^)#:]+)\)', text):
    assert (page.parent / target).exists(), target


def test_a_wrong_page_is_found_out(tmp_path):
  page = tmp_path / 'wrong.md'
  page.write_text('# Wrong\n\n```python\na = 1\n```\n\n```python\nb = c\n```\n')
  with pytest.raises(NameError) as raised:
    _run_program(page)
  assert raised.traceback[-1].lineno + 1 == 8  # counted from 0 there

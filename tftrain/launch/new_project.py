"""Project generator: copies the templates of a project that trains.

python -m tftrain.launch.new_project NAME
"""

from collections.abc import Sequence
import importlib.util
import keyword
import pathlib
import re
import string
import sys

from tftrain import errors
from tftrain.platform import files

_USAGE = """usage: python -m tftrain.launch.new_project NAME

Makes the directory NAME: a task, data, a configuration, a test and a README.
"""

_TEMPLATES = pathlib.Path(__file__).parent / 'templates'


def make(name: str, parent: pathlib.Path) -> pathlib.Path:
  """Creates a project; its directory appears complete or not at all.

  Args:
    name: Name of the project, its directory, its package and its gin file.
    parent: Directory in which the project's directory is created.

  Raises:
    ConfigError: If `name` is not a valid or free name of a Python module.
    RunDirectoryError: If `name` exists in `parent`.
  """
  directory = parent / name
  _check_project_name(name)
  if directory.exists() or directory.is_symlink():
    raise errors.RunDirectoryError(
      f'{directory} is there already; choose another name, or remove it'
    )
  files.make_directory(parent, 'directory')
  with (
    files.convert_os_errors(directory),
    files.staged_directory(directory) as staged,
  ):
    files.make_directory(staged / name)
    for template in sorted(_TEMPLATES.rglob('*.txt')):
      path = template.relative_to(_TEMPLATES).with_suffix('')
      named = staged / str(path).replace('NAME', name)
      text = template.read_text(encoding='utf-8')
      files.write_text(named, string.Template(text).substitute(name=name))
  return directory


def _check_project_name(name: str) -> None:
  if not re.fullmatch(r'[a-z][a-z0-9_]{0,40}', name) or keyword.iskeyword(name):
    raise errors.ConfigError(
      f'{name!r} cannot name a project; give up to 41 lower-case letters, '
      'digits or underscores, a letter first, and no word of Python'
    )
  found = importlib.util.find_spec(name)
  if name in sys.stdlib_module_names or (found and found.origin):
    raise errors.ConfigError(
      f'{name!r} is a module that Python has already; choose another name'
    )


def main(arguments: Sequence[str]) -> int:
  """Creates a project; returns 0, or 2 if the arguments are invalid."""
  if len(arguments) != 1 or arguments[0].startswith('-'):
    print(_USAGE, file=sys.stderr)
    return 2
  (name,) = arguments
  try:
    made = make(name, pathlib.Path())
  except errors.Error as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  print(f'Made {made}/. Next:')
  print(f'  cd {made}')
  print(f'  python -m tftrain --gin_file={name}.gin --model_dir=/tmp/{name}')
  print('  python -m pytest')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

"""Rerun: repeats a run from the records in its directory."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from tftrain import errors
from tftrain.debug import compare_runs

# Flags that affect the result of a run, and are not in its gin file.
_BOOLEANS = ('run_eagerly', 'deterministic', 'tf32')
_FLAGS = ('local_devices', *_BOOLEANS)
_TOLD = ('code', 'data', 'versions')


def flags_of(run: str, model_dir: str) -> dict[str, str]:
  """Returns flag -> value that `run` was started with, including config.gin.

  Raises:
    RunDirectoryError: If `run` was not started by the command line.
    ConfigError: If `model_dir` is the directory of `run`.
  """
  path = pathlib.Path(run)
  if path.resolve() == pathlib.Path(model_dir).resolve():
    raise errors.ConfigError(
      f'--run and --model_dir are both {run}; give the repeated run a '
      'model_dir of its own'
    )
  argv = _last_argv(compare_runs.read(path))
  config = path / 'config.gin'
  if not config.is_file():
    raise errors.RunDirectoryError(
      f'{run} holds no config.gin, as its run was started from Python; start '
      'that program again with another model_dir'
    )
  found = {'gin_file': str(config)}
  for name in _FLAGS:
    value = _value(argv, name)
    if value is not None:
      found[name] = value
  return found


def mode_of(run: str) -> str:
  """Returns `train` if `run` was not evaluated, else `train_and_eval`."""
  mode = _value(_last_argv(compare_runs.read(pathlib.Path(run))), 'mode')
  return 'train' if mode == 'train' else 'train_and_eval'


def warnings(run: str, attempt: Mapping[str, Any]) -> Iterator[str]:
  """Yields a line for each of code, data and versions that differs."""
  lines = list(
    compare_runs.facts(
      compare_runs.read(pathlib.Path(run)), {'attempts': [attempt]}
    )
  )
  for kind in _TOLD:
    start = f'{kind}: '
    parts = [
      line.removeprefix(start) for line in lines if line.startswith(start)
    ]
    if parts:
      yield f'{kind} differ from those of {run}: {"; ".join(parts)}'


def verdict(run: str, model_dir: str) -> str:
  """Returns the comparison of the two runs, as text."""
  try:
    return f'Compared with {run}: {compare_runs.compare(run, model_dir)}'
  except errors.RunDirectoryError as error:
    return f'Not compared with {run}: {error}'


def _last_argv(record: Mapping[str, Any]) -> list[str]:
  attempts = record.get('attempts') or [{}]
  return [str(word) for word in attempts[-1].get('argv', [])]


def _value(argv: Sequence[str], name: str) -> str | None:
  """Returns the value of a flag on a command line; the last one counts."""
  value = None
  for word, following in zip(argv, [*argv[1:], ''], strict=True):
    flag, equals, given = word.lstrip('-').partition('=')
    if not word.startswith('-') or flag not in (name, f'no{name}'):
      continue
    if equals:
      value = given
    elif name in _BOOLEANS:  # a boolean flag takes no separate value
      value = str(flag == name)
    else:
      value = following
  return value

"""Rerun: a run repeated from what its directory says of it."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from tftrain import errors
from tftrain.debug import compare_runs

# Flags that decide what comes out, and are in no gin file.
_BOOLEANS = ('run_eagerly', 'deterministic', 'tf32')
_FLAGS = ('local_devices', *_BOOLEANS)
_TOLD = ('code', 'data', 'versions')


def flags_of(run: str, model_dir: str) -> dict[str, str]:
  """Flag -> value with which `run` was made, its config.gin among them.

  Raises:
    RunDirectoryError: `run` is no run of the command line.
    ConfigError: `model_dir` is where it lies.
  """
  path = pathlib.Path(run)
  if path.resolve() == pathlib.Path(model_dir).resolve():
    raise errors.ConfigError(
      f'--run and --model_dir are both {run}; give the repeated run a '
      'model_dir of its own'
    )
  argv = _argv(compare_runs.read(path))
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
  """Whether `run` was evaluated: `train` or `train_and_eval`."""
  mode = _value(_argv(compare_runs.read(pathlib.Path(run))), 'mode')
  return 'train' if mode == 'train' else 'train_and_eval'


def warnings(run: str, life: Mapping[str, Any]) -> Iterator[str]:
  """A line for each of code, data and versions that is not what it was."""
  lines = list(
    compare_runs.facts(compare_runs.read(pathlib.Path(run)), {'lives': [life]})
  )
  for kind in _TOLD:
    start = f'{kind}: '
    parts = [
      line.removeprefix(start) for line in lines if line.startswith(start)
    ]
    if parts:
      yield f'{kind} differ from those of {run}: {"; ".join(parts)}'


def verdict(run: str, model_dir: str) -> str:
  """What diff says of the two runs."""
  try:
    return f'Compared with {run}: {compare_runs.compare(run, model_dir)}'
  except errors.RunDirectoryError as error:
    return f'Not compared with {run}: {error}'


def _argv(record: Mapping[str, Any]) -> list[str]:
  lives = record.get('lives') or [{}]
  return [str(word) for word in lives[-1].get('argv', [])]


def _value(argv: Sequence[str], name: str) -> str | None:
  """What a flag was given on a command line; the last one counts."""
  value = None
  for word, following in zip(argv, [*argv[1:], ''], strict=True):
    flag, equals, given = word.lstrip('-').partition('=')
    if not word.startswith('-') or flag not in (name, f'no{name}'):
      continue
    if equals:
      value = given
    elif name in _BOOLEANS:  # a boolean has no word after it
      value = str(flag == name)
    else:
      value = following
  return value

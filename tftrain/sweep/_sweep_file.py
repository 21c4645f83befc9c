"""Sweep files: gin files that bind Sweep, its pruner and the trials' base.

All bindings other than those of Sweep and the pruner apply to the trials.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import difflib
import pathlib
from typing import Any

from gin import config_parser

from tftrain import errors
from tftrain.config import gin_files as gin_files_lib
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import search_space
from tftrain.sweep import sweep as sweep_lib

_TYPES: dict[str, tuple[type, ...]] = {
  'metric': (str,),
  'goal': (str,),
  'search': (str,),
  'num_trials': (int, type(None)),
  'seeds': (list, tuple, type(None)),
  'seed': (int,),
  'time_limit': (str, type(None)),
  'max_kills': (int,),
  'lease_seconds': (int, float),
  'grace_seconds': (int, float),
}


@dataclasses.dataclass(frozen=True)
class SweepFile:
  """A parsed sweep file.

  Attributes:
    sweep: The Sweep.
    pruner: The pruner of the sweep; None if Sweep.prune is None.
    base: Bindings common to all trials, as one gin text without includes.
  """

  sweep: sweep_lib.Sweep
  pruner: pruner_lib.Pruner | None
  base: str


def read(path: pathlib.Path, roots: Sequence[pathlib.Path]) -> SweepFile:
  """Reads a sweep file; imports and runs nothing.

  Raises:
    ConfigError: If the file is not valid gin, or its sweep is missing or
      invalid.
  """
  ours: dict[str, dict[str, Any]] = {'Sweep': {}}
  ours.update({name: {} for name in pruner_lib.PRUNERS})
  lines: dict[Any, str] = {}
  text = gin_files_lib.Text(gin_files_lib.text_of(path), str(path), path.parent)
  for where, statement in _statements(text, roots):
    if isinstance(statement, config_parser.ImportStatement):
      lines[statement.format()] = statement.format()
    elif isinstance(statement, config_parser.BindingStatement):
      name = statement.selector.removeprefix('tftrain.')
      if name in ours and statement.arg_name:
        ours[name][statement.arg_name] = (where, statement.value)
      else:  # a later binding replaces an earlier one
        lines.pop(statement[:3], None)
        lines[statement[:3]] = _binding_text(statement)
  if not ours['Sweep']:
    raise errors.ConfigError(
      f'{path} binds nothing of Sweep; write Sweep.space and Sweep.metric'
    )
  sweep = _made(ours['Sweep'], str(path))
  return SweepFile(
    sweep,
    _pruner(sweep, ours, str(path)),
    ''.join(line + '\n' for line in lines.values()),
  )


def _statements(
  text: gin_files_lib.Text,
  roots: Sequence[pathlib.Path],
  where: str = '',
  open_files: list[str] | None = None,
) -> Iterator[tuple[str, Any]]:
  """Yields (location, statement) of a text and its includes."""
  open_files = [] if open_files is None else open_files
  with gin_files_lib.opened(text, where, open_files):
    for where, statement in gin_files_lib.parsed(text):
      if isinstance(statement, config_parser.IncludeStatement):
        inner = gin_files_lib.included(text, statement, where, roots)
        yield from _statements(inner, roots, where, open_files)
      else:
        yield where, statement


def _binding_text(statement: Any) -> str:
  scope = f'{statement.scope}/' if statement.scope else ''
  name = f'.{statement.arg_name}' if statement.arg_name else ''
  return f'{scope}{statement.selector}{name} = {statement.value!r}'


def _made(given: dict[str, tuple[str, Any]], path: str) -> sweep_lib.Sweep:
  known = [field.name for field in dataclasses.fields(sweep_lib.Sweep)]
  for name, (where, value) in given.items():
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      hint = f'; did you mean {close[0]!r}?' if close else ''
      raise errors.ConfigError(
        f'{where}: Sweep has no parameter {name!r}{hint}'
      )
    kinds = _TYPES.get(name, (object,))
    if not isinstance(value, kinds) or (
      isinstance(value, bool) and object not in kinds
    ):
      wanted = ' or '.join(
        'None' if kind is type(None) else kind.__name__ for kind in kinds
      )
      raise errors.ConfigError(
        f'{where}: Sweep.{name} = {value!r} is {type(value).__name__}, '
        f'expected {wanted}'
      )
  for name in ('space', 'metric'):
    if name not in given:
      raise errors.ConfigError(f'{path}: Sweep.{name} is required; bind it')
  sweep = sweep_lib.Sweep(**{name: value for name, (_, value) in given.items()})
  sweep_lib.check(sweep)
  _check_values(search_space.parse(sweep.space))
  return sweep


def _check_values(space: search_space.Space) -> None:
  """Raises ConfigError for a choice that gin would not read back unchanged."""
  for branch in space:
    for dimension in branch:
      for value in (v for choice in dimension.choices for v in choice):
        _check_space_value(dimension.names, value)


def _check_space_value(names: Sequence[str], value: Any) -> None:
  text = gin_files_lib.Text(f'x.y = {value!r}', 'Sweep.space')
  for _, statement in gin_files_lib.parsed(text):
    if statement.value != value:
      raise errors.ConfigError(
        f'Sweep.space[{", ".join(names)}]: {value!r} cannot be written as a '
        'gin value; use a number, a text, a list, @name or %MACRO'
      )


def _pruner(
  sweep: sweep_lib.Sweep, ours: dict[str, dict[str, Any]], path: str
) -> pruner_lib.Pruner | None:
  name = str(getattr(sweep.prune, 'name', ''))
  for other in pruner_lib.PRUNERS:
    if ours[other] and other != name:
      where, _ = next(iter(ours[other].values()))
      raise errors.ConfigError(
        f'{where}: {other} has no effect; set Sweep.prune = @{other}()'
      )
  if sweep.prune is None:
    return None
  if name not in pruner_lib.PRUNERS or not getattr(
    sweep.prune, 'called', False
  ):
    raise errors.ConfigError(
      f'{path}: Sweep.prune = {sweep.prune!r}; choose '
      f'{" or ".join(f"@{known}()" for known in pruner_lib.PRUNERS)}'
    )
  values = {key: value for key, (_, value) in ours[name].items()}
  return pruner_lib.make(name, values)

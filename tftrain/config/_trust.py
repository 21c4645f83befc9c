"""Checks of untrusted configurations: data is allowed, code is not."""

from collections.abc import Sequence
import pathlib
from typing import Any

from gin import config as gin_config
from gin import config_parser

from tftrain import errors
from tftrain.config import gin_files as gin_files_lib

# Registered, but not allowed in untrusted files: these run or fetch what a text
# names, or write to a path that it gives.
_REFUSED = {
  'tftrain.CsvWriter': 'writes to any path',
  'tftrain.Generator': 'calls what it is given',
  'tftrain.Tfds': 'runs the code of a data set',
  'gin.constant': 'is no part of a recipe',
}
_REFUSED_PARAMETERS = {
  ('tftrain.Examples', 'service'): 'sends the data to another machine'
}
# Keras deserializes a dict with these keys, and imports the module it names.
_OBJECT = ('class_name', 'module', 'registered_name')


def check(text: gin_files_lib.Text, roots: Sequence[pathlib.Path]) -> None:
  """Rejects a text that is more than data, before any import or call.

  The text may use the names that are already registered: the public ones of
  tftrain, Keras's optimizers, schedules, losses and metrics, and those that the
  script that starts the run has imported.

  Raises:
    ConfigError: If a text imports a module, or uses a name that is not allowed.
  """
  _check_text(text, roots, '', [])


def _check_text(
  text: gin_files_lib.Text,
  roots: Sequence[pathlib.Path],
  where: str,
  open_files: list[str],
) -> None:
  with gin_files_lib.opened(text, where, open_files):
    for where, statement in gin_files_lib.parsed(text):
      if isinstance(statement, config_parser.ImportStatement):
        raise errors.ConfigError(
          f'{where}: {statement.format()!r} runs code, which '
          '--config_trust=data refuses; import it in the script that calls '
          'tftrain.launch.run, or trust the file'
        )
      if isinstance(statement, config_parser.IncludeStatement):
        inner = gin_files_lib.included(text, statement, where, roots)
        _check_text(inner, roots, where, open_files)
      elif isinstance(statement, config_parser.BindingStatement):
        if statement.arg_name and statement.selector not in (
          'gin.macro',
          'macro',
        ):
          _check_configurable(statement.selector, statement.arg_name, where)
        _check_references(statement.value, where)


def _check_configurable(name: str, parameter: str | None, where: str) -> None:
  matches = gin_config._REGISTRY.matching_selectors(name)
  if len(matches) != 1:
    raise errors.ConfigError(
      f'{where}: {name!r} is not among the names that --config_trust=data '
      'allows: those of tftrain and Keras, and what the script that starts the '
      'run has registered'
    )
  (selector,) = matches
  why = _REFUSED.get(selector)
  if why is None and parameter is not None:
    why = _REFUSED_PARAMETERS.get((selector, parameter))
    name = f'{name}.{parameter}'
  if why is not None:
    raise errors.ConfigError(
      f'{where}: {name} {why}, which --config_trust=data refuses; leave it '
      'out, or trust the file'
    )


def _check_references(value: Any, where: str) -> None:
  for reference in gin_files_lib.references(value):
    if not reference.is_macro:
      _check_configurable(reference.selector, None, where)
  for found in _dicts(value):
    # A reference as a key may evaluate to one of these keys.
    keys = [
      k for k in found if k in _OBJECT or any(gin_files_lib.references(k))
    ]
    if keys:
      raise errors.ConfigError(
        f'{where}: a dict with the key {keys[0]!r} may have Keras import what '
        'it names, which --config_trust=data refuses; leave it out, or trust '
        'the file'
      )


def _dicts(value: Any) -> list[dict[Any, Any]]:
  if isinstance(value, dict):
    inner = [*value.keys(), *value.values()]
    return [value, *(d for item in inner for d in _dicts(item))]
  if isinstance(value, list | tuple):
    return [d for item in value for d in _dicts(item)]
  return []

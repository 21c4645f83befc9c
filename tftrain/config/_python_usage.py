"""What Python code itself does with gin: whom it calls, which scopes it enters.

A gin file shows only half of that. The other half is read off the modules that
use gin, none of which is run for it.
"""

import ast
from collections.abc import Iterator
import dataclasses
import functools
import inspect
import sys
import types
from typing import Any

import gin
from gin import config as gin_config
import keras

from tftrain import errors

_OURS = (
  'gin',
  'gin.config',
  'tftrain.config.loader',
  'tftrain.config.gin_parser',
)


@dataclasses.dataclass(frozen=True)
class Usage:
  """What is known of Python's side.

  Attributes:
    called: Selectors that Python code can call without a reference.
    scopes: Names of scopes that it enters.
    any_name: Whether it may also look up names that cannot be read off it.
    any_scope: Whether it may also enter such scopes.
  """

  called: frozenset[str]
  scopes: frozenset[str]
  any_name: bool
  any_scope: bool


def find() -> Usage:
  """What the modules do that are imported now."""
  scopes: set[str] = set()
  any_name = any_scope = False
  held: set[int] = set()
  for module in _users():
    held |= {id(value) for value in vars(module).values()}
    for name, argument in _calls(module):
      if name == 'get_configurable':
        any_name = True
      elif isinstance(argument, ast.Constant) and argument.value is not None:
        scopes |= set(str(argument.value).split('/'))
      elif not isinstance(argument, ast.Constant):
        any_scope = True
  called = {
    selector
    for selector, entry in gin_config._REGISTRY.items()
    if id(entry.wrapper) in held or entry.wrapper is entry.wrapped
  }
  return Usage(frozenset(called), frozenset(scopes), any_name, any_scope)


def _users() -> Iterator[types.ModuleType]:
  """The modules that hold gin, or something of it."""
  marks = {id(gin), id(gin_config)}
  marks |= {id(value) for value in vars(gin).values() if callable(value)}
  for name, module in list(sys.modules.items()):
    if isinstance(module, types.ModuleType) and name not in _OURS:
      if any(id(value) in marks for value in list(vars(module).values())):
        yield module


def _calls(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
  """(function, first argument) of what looks gin's scopes or names up."""
  if module.__name__.startswith(('gin.', 'tftrain.')):
    return
  try:
    tree = _tree(inspect.getsource(module))
  except (OSError, TypeError, SyntaxError):  # typed at a prompt, or compiled
    return
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func).rpartition('.')[2]
      if name in ('config_scope', 'get_configurable'):
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        yield name, arguments[0] if arguments else None


@functools.cache
def _tree(source: str) -> ast.Module:
  return ast.parse(source)


def check_layers() -> None:
  """Refuses Keras layers whose constructor gin has replaced.

  Raises:
    ConfigError: Keras could not make them, nor save their configuration.
  """
  for selector, entry in gin_config._REGISTRY.items():
    cls = entry.wrapped
    if inspect.isclass(cls) and entry.wrapper is cls:
      if issubclass(cls, keras.layers.Layer):
        kind = 'model' if issubclass(cls, keras.Model) else 'layer'
        raise errors.ConfigError(
          f'{selector} is a Keras {kind}: decorate it with @gin.register, not '
          '@gin.configurable, which breaks its construction and get_config'
        )

"""Gin usage of Python code: the configurables it calls, the scopes it enters.

A gin file shows only the references between configurables. The usage by Python
is found in the imported modules that use gin, by parsing their source; no code
runs.
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
  'tftrain.config.registry',
)


@dataclasses.dataclass(frozen=True)
class Usage:
  """The configurables and scopes that Python code uses.

  Attributes:
    called: Selectors that Python code can call without a reference.
    scopes: Names of scopes that Python code enters.
    any_name: Whether it may also call configurables that parsing cannot find.
    any_scope: Whether it may also enter scopes that parsing cannot find.
  """

  called: frozenset[str]
  scopes: frozenset[str]
  any_name: bool
  any_scope: bool


def find() -> Usage:
  """Returns the gin usage of all imported modules."""
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
  """Yields the modules that hold gin, or one of its functions."""
  marks = {id(gin), id(gin_config)}
  marks |= {id(value) for value in vars(gin).values() if callable(value)}
  for name, module in list(sys.modules.items()):
    if isinstance(module, types.ModuleType) and name not in _OURS:
      if any(id(value) in marks for value in list(vars(module).values())):
        yield module


def _calls(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
  """Yields (function, first argument) of calls that look up scopes or names."""
  if module.__name__.startswith(('gin.', 'tftrain.')):
    return
  try:
    tree = _tree(inspect.getsource(module))
  except (OSError, TypeError, SyntaxError):  # no source: a prompt or C
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
  """Rejects Keras layers whose constructor gin has replaced.

  Raises:
    ConfigError: If a layer is decorated with @gin.configurable. Keras could
      neither build it nor save its configuration.
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

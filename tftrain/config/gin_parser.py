"""Parsing of gin files into statements, before gin applies them."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import importlib
import os
import pathlib
from typing import Any

from gin import config as gin_config
from gin import config_parser

from tftrain import errors
from tftrain.config import gin_files as gin_files_lib


class Names:
  """Name resolution within one gin text.

  Names refer to registered configurables; or, after `from __gin__ import
  dynamic_registration`, to the imports of the text, as in Python.
  """

  def __init__(self) -> None:
    self._context = gin_config.ParseContext()

  @property
  def is_dynamic(self) -> bool:
    return bool(self._context._dynamic_registration)

  def add(self, statement: Any) -> None:
    self._context.process_import(statement)

  def find(self, selector: str, where: str) -> Any:
    """Returns gin's Configurable of a name.

    Raises:
      ConfigError: If `selector` is unknown or ambiguous.
    """
    if self.is_dynamic:
      return self._imported(selector, where)
    registry = gin_config._REGISTRY
    matches = registry.matching_selectors(selector)
    if len(matches) == 1:
      return registry[matches[0]]
    if matches:
      raise errors.ConfigError(
        f'{where}: {selector!r} may be any of {", ".join(sorted(matches))}; '
        'write more of its name'
      )
    short = {name.rpartition('.')[2] for name, _ in registry.items()}
    raise errors.ConfigError(
      f'{where}: no configurable is called {selector!r}'
      + (
        gin_files_lib.suggest(selector, short)
        or gin_files_lib.suggest(selector.rpartition('.')[2], short)
        or '; is its module imported?'
      )
    )

  def _imported(self, selector: str, where: str) -> Any:
    """Returns the Configurable of an imported name, registered on demand."""
    symbols = self._context._symbol_table
    first, *rest = selector.split('.')
    if first not in symbols:
      raise errors.ConfigError(
        f'{where}: no import of this file provides {first!r} of {selector!r}'
        + (
          gin_files_lib.suggest(first, symbols)
          or f'; with dynamic registration, import {first!r} here'
        )
      )
    found, path = symbols[first], first
    for name in rest:
      if not hasattr(found, name):
        close = gin_files_lib.suggest(name, dir(found), f'{path}.')
        raise errors.ConfigError(
          f'{where}: no configurable is called {selector!r}: {path} has no '
          f'{name!r}{close}'
        )
      found, path = getattr(found, name), f'{path}.{name}'
    if not callable(found):
      raise errors.ConfigError(
        f'{where}: {selector!r} is {type(found).__name__}; name a class or a '
        'function'
      )
    return self._context.get_configurable(selector)


@dataclasses.dataclass(frozen=True)
class Statement:
  """One binding and its location."""

  where: str
  origin: str
  scope: str
  selector: str
  parameter: str
  value: Any
  names: Names

  @property
  def is_macro(self) -> bool:
    return not self.parameter or self.selector in ('gin.macro', 'macro')

  @property
  def macro(self) -> str:
    """The full name of the macro."""
    if self.parameter:  # NAME/macro.value = ... is the long form
      return self.scope
    return f'{self.scope}/{self.selector}' if self.scope else self.selector

  @property
  def name(self) -> str:
    """The name of the binding, as written."""
    if self.is_macro:
      return self.macro
    scope = f'{self.scope}/' if self.scope else ''
    return f'{scope}{self.selector}.{self.parameter}'

  @property
  def configurable(self) -> Any:
    """The Configurable of gin whose parameter is bound."""
    return self.names.find(self.selector, self.where)


def read(
  text: gin_files_lib.Text,
  roots: Sequence[pathlib.Path],
  where: str = '',
  open_files: list[str] | None = None,
) -> Iterator[Statement]:
  """Yields the bindings of a gin text and its includes; runs its imports."""
  open_files = [] if open_files is None else open_files
  names = Names()
  with gin_files_lib.opened(text, where, open_files):
    for where, statement in gin_files_lib.parsed(text):
      if isinstance(statement, config_parser.ImportStatement):
        _import(statement, where, names)
      elif isinstance(statement, config_parser.IncludeStatement):
        inner = gin_files_lib.included(text, statement, where, roots)
        yield from read(inner, roots, where, open_files)
      elif isinstance(statement, config_parser.BindingStatement):
        yield Statement(
          where,
          text.origin,
          statement.scope,
          statement.selector,
          statement.arg_name,
          statement.value,
          names,
        )


def bind(text: gin_files_lib.Text, roots: Sequence[pathlib.Path]) -> None:
  """Applies a text that was read and checked to gin.

  Replaces gin.parse_config, which finds includes from the working directory
  only.
  """
  parser = config_parser.ConfigParser(text.content, gin_config.ParserDelegate())
  with gin_config._parse_scope() as context:
    for statement in parser:
      if isinstance(statement, config_parser.ImportStatement):
        context.process_import(statement)
      elif isinstance(statement, config_parser.IncludeStatement):
        bind(gin_files_lib.included(text, statement, 'include', roots), roots)
      elif isinstance(statement, config_parser.BindingStatement):
        scope, selector, parameter, value, _ = statement
        if not parameter:
          scope = f'{scope}/{selector}' if scope else selector
          selector, parameter = 'gin.macro', 'value'
        gin_config.bind_parameter((scope, selector, parameter), value)
    gin_config._IMPORTS.update(context.imports)


def _import(statement: Any, where: str, names: Names) -> None:
  try:
    if not statement.module.startswith('__gin__'):
      importlib.import_module(statement.module)
    names.add(statement)
  except ModuleNotFoundError as error:
    raise errors.ConfigError(
      f'{where}: no module named {error.name!r} (for {statement.format()!r}); '
      'install it, or run from the directory that holds it'
    ) from error
  except SyntaxError as error:
    if error.args[1:] and not statement.module.startswith('__gin__'):
      place = f'{os.path.basename(error.filename or "")}:{error.lineno}'
      raise errors.ConfigError(
        f'{where}: {statement.format()!r} failed: {place}: {error.msg}'
      ) from error
    raise errors.ConfigError(
      f'{where}: {statement.format()!r}: {errors.one_line(error)}; put it '
      'before all other imports'
    ) from error
  except Exception as error:
    raise errors.ConfigError(
      f'{where}: {statement.format()!r} failed: {type(error).__name__}: '
      f'{errors.one_line(error)}'
    ) from error


def values(text: str) -> dict[str, str]:
  """Returns binding -> value as text, with macros resolved."""
  found = [
    s
    for s in config_parser.ConfigParser(text, gin_files_lib.Delegate())
    if isinstance(s, config_parser.BindingStatement)
  ]
  macros = {
    f'{s.scope}/{s.selector}' if s.scope else s.selector: s.value
    for s in found
    if not s.arg_name
  }
  values = {}
  for s in found:
    if s.arg_name:
      value = s.value
      if isinstance(value, gin_files_lib.Reference) and value.is_macro:
        value = macros.get(value.name, value)
      scope = f'{s.scope}/' if s.scope else ''
      selector = s.selector.removeprefix('tftrain.')
      if selector.endswith('.Experiment'):  # dynamic registration
        selector = 'Experiment'
      values[f'{scope}{selector}.{s.arg_name}'] = repr(value)
  return values

"""Validation of bindings, before gin applies any of them."""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

from gin import config as gin_config

from tftrain import errors
from tftrain.config import _python_usage
from tftrain.config import _resolver
from tftrain.config import gin_files as gin_files_lib
from tftrain.config import gin_parser
from tftrain.platform import redaction


def check(found: Sequence[gin_parser.Statement]) -> _resolver.Recipe:
  """Validates all statements and returns their resolution.

  Raises:
    ConfigError: If a statement is invalid or has no effect.
  """
  _python_usage.check_layers()
  macros = {s.macro: s for s in found if s.is_macro}
  for statement in found:
    for reference in gin_files_lib.references(statement.value):
      if reference.is_macro:
        _check_macro(statement, reference, macros)
      else:
        statement.names.find(reference.selector, statement.where)
    if not statement.is_macro:
      _check_parameter(statement)
  _check_once(found)
  recipe = _resolver.Recipe(found)
  for statement in found:
    _check_type(statement, recipe)
  _check_redacted(recipe)
  _check_scopes(found, recipe)
  _check_required(recipe)
  _check_macros_read(found, recipe)
  _check_used(found, recipe)
  return recipe


def _check_macro(
  statement: gin_parser.Statement,
  reference: gin_files_lib.Reference,
  macros: Mapping[str, Any],
) -> None:
  name = reference.name
  if name not in macros and not gin_config._CONSTANTS.matching_selectors(name):
    raise errors.ConfigError(
      f'{statement.where}: no macro is called %{name}'
      + gin_files_lib.suggest(name, macros)
    )


def _check_parameter(statement: gin_parser.Statement) -> None:
  takes = _resolver.parameters_of(statement.configurable.wrapped)
  name = statement.parameter
  if name not in takes and '**' not in takes:
    raise errors.ConfigError(
      f'{statement.where}: {statement.selector} has no parameter {name!r}'
      + gin_files_lib.suggest(name, takes)
    )


def _check_type(
  statement: gin_parser.Statement, recipe: _resolver.Recipe
) -> None:
  value, _ = recipe.source(statement)
  if statement.is_macro or isinstance(value, gin_files_lib.Reference):
    return
  takes = _resolver.parameters_of(statement.configurable.wrapped)
  parameter = takes.get(statement.parameter, _resolver.Parameter())
  if not parameter.fits(value):
    raise errors.ConfigError(
      f'{statement.where}: {statement.name} = {errors.brief(repr(value))} is '
      f'{type(value).__name__}, expected {parameter.wanted}'
    )


def _check_redacted(recipe: _resolver.Recipe) -> None:
  """Rejects a saved configuration whose redacted secrets are not given."""
  holding = [s for bound in recipe.bound.values() for s in bound.values()]
  for statement in [*holding, *recipe.macros.values()]:
    if redaction.is_redacted(statement.value):
      raise errors.ConfigError(
        f'{statement.where}: {statement.name} was left out when this file was '
        f"saved; give it anew, as --gin.{statement.name}='...'"
      )


def _check_once(found: Sequence[gin_parser.Statement]) -> None:
  """Rejects two bindings of one parameter in a file: one is a mistake."""
  seen: dict[tuple[str, ...], gin_parser.Statement] = {}
  for statement in found:
    if statement.is_macro:
      key: tuple[str, ...] = (statement.origin, statement.macro)
    else:
      selector = statement.configurable.selector
      key = (
        statement.origin,
        statement.scope,
        selector,
        statement.parameter,
      )
    first = seen.setdefault(key, statement)
    # Of repeated flags the last one counts, as usual on a command line.
    if first is not statement and not statement.origin.startswith('--gin'):
      raise errors.ConfigError(
        f'{statement.where}: {statement.name} is bound a second time, after '
        f'{first.where}; remove one of them'
      )


def _check_scopes(
  found: Sequence[gin_parser.Statement], recipe: _resolver.Recipe
) -> None:
  """Rejects bindings in scopes that nothing enters."""
  usage = recipe.usage
  if usage.any_scope:
    return
  entered = {
    reference.scope
    for statement in found
    for reference in gin_files_lib.references(statement.value)
    if reference.scope
  }
  used = sorted(entered | usage.scopes)
  single = {part for scope in used for part in scope.split('/')}
  for statement in found:
    scope = statement.scope
    if statement.is_macro or not scope:
      continue
    if any(f'{other}/'.startswith(f'{scope}/') for other in entered):
      continue
    if usage.scopes and set(scope.split('/')) <= single:
      continue  # Python may nest scopes that it enters
    raise errors.ConfigError(
      f'{statement.where}: {statement.name} has no effect: the scope {scope!r} '
      f'is not entered (scopes used: {", ".join(used) or "none"})'
      + gin_files_lib.suggest(scope, used)
    )


def _check_required(recipe: _resolver.Recipe) -> None:
  for (selector, scope), where in recipe.reached.items():
    bound = recipe.bindings(selector, scope)
    name = _resolver.short(selector)
    for parameter, takes in _resolver.parameters_of(
      _resolver.wrapped(selector)
    ).items():
      if parameter in bound or parameter == '**':
        continue
      is_called = selector == _resolver.EXPERIMENT
      is_called |= (selector, scope) in recipe.called
      if takes.must_be_bound or (is_called and takes.default is _resolver.NONE):
        raise errors.ConfigError(_required(f'{name}.{parameter}', scope, where))
    for statement in bound.values():
      value, source = recipe.source(statement)
      if isinstance(value, gin_files_lib.Reference) and _is_required(value):
        scope = '' if source.is_macro else source.scope
        name = source.name.removeprefix(f'{scope}/')
        raise errors.ConfigError(_required(name, scope, source.where))


def _is_required(reference: gin_files_lib.Reference) -> bool:
  return reference.is_macro and reference.name in ('gin.REQUIRED', 'REQUIRED')


def _required(name: str, scope: str, where: str) -> str:
  inside = f' (scope {scope!r})' if scope else ''
  start = '' if where in ('Experiment', 'Python') else f'{where}: '
  full = f'{scope}/{name}' if scope else name
  return (
    f'{start}required: {name}{inside}; set it in a gin file or with '
    f'--gin.{full}=...'
  )


def _check_macros_read(
  found: Sequence[gin_parser.Statement], recipe: _resolver.Recipe
) -> None:
  read = {
    reference.name
    for statement in found
    for reference in gin_files_lib.references(statement.value)
    if reference.is_macro
  }
  for name, statement in recipe.macros.items():
    if name in read:
      continue
    near = [
      f'{_resolver.short(selector)}.{name}'
      for selector, _ in recipe.reached
      if name in _resolver.parameters_of(_resolver.wrapped(selector))
    ]
    if near:
      value = errors.brief(repr(statement.value), 40)
      raise errors.ConfigError(
        f"{statement.where}: '{name} = {value}' only sets the macro %{name}, "
        f"which nothing reads; did you mean '{near[0]} = {value}'?"
      )
    raise errors.ConfigError(
      f'{statement.where}: nothing reads the macro {name}; use it as '
      f'%{name}, or write Name.{name} to bind a parameter'
      + gin_files_lib.suggest(name, read - {'gin.REQUIRED'})
    )


def _check_used(
  found: Sequence[gin_parser.Statement], recipe: _resolver.Recipe
) -> None:
  if recipe.usage.any_name:
    return  # loader.check_used() checks again after all parts are built
  reached = {selector for selector, _ in recipe.reached}
  for statement in found:
    if statement.is_macro:
      continue
    selector = statement.configurable.selector
    if selector not in reached:
      short = _resolver.short(selector)
      short = re.sub(r'^tftrain\.', '', short)
      raise errors.ConfigError(
        f'{statement.where}: {statement.name} has no effect: nothing refers to '
        f'@{short}; do so, or remove the binding'
      )

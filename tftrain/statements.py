"""Reading and checking the bindings of gin files before gin runs them."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import importlib
import inspect
import pathlib
import types
import typing
from typing import Any

from gin import config as gin_config
from gin import config_parser

from tftrain import errors
from tftrain import experiments
from tftrain import gintexts


@dataclasses.dataclass(frozen=True)
class Statement:
  """One binding and where it stands."""

  where: str
  selector: str
  parameter: str
  value: Any

  @property
  def is_macro(self) -> bool:
    return not self.parameter or self.selector == 'gin.macro'


def read(
  text: str, origin: str, roots: Sequence[pathlib.Path]
) -> Iterator[Statement]:
  """The bindings of a gin text and its includes; imports what it imports."""
  for where, statement in gintexts.parse(text, origin):
    if isinstance(statement, config_parser.ImportStatement):
      _import(statement, where)
    elif isinstance(statement, config_parser.IncludeStatement):
      path = gintexts.find(statement.filename, roots, where)
      yield from read(gintexts.text_of(path), str(path), roots)
    elif isinstance(statement, config_parser.BindingStatement):
      yield Statement(
        where, statement.selector, statement.arg_name, statement.value
      )


def _import(statement: Any, where: str) -> None:
  if statement.module.startswith('__gin__'):
    raise errors.ConfigError(
      f'{where}: dynamic registration is not supported; import the module and '
      'decorate what it offers with @gin.register'
    )
  try:
    try:
      importlib.import_module(statement.module)
    except ModuleNotFoundError as error:
      parent, _, name = statement.module.rpartition('.')
      if not (statement.is_from and error.name == statement.module):
        raise
      getattr(importlib.import_module(parent), name)
  except ModuleNotFoundError as error:
    raise errors.ConfigError(
      f'{where}: no module named {error.name!r} (for {statement.format()!r}); '
      'install it, or run from the directory that holds it'
    ) from error
  except Exception as error:
    raise errors.ConfigError(
      f'{where}: {statement.format()!r} failed: {type(error).__name__}: '
      f'{errors.one_line(error)}'
    ) from error


def check(statements: Sequence[Statement]) -> None:
  macros = {s.selector.rpartition('/')[2]: s for s in statements if s.is_macro}
  read: set[str] = set()
  for statement in statements:
    for reference in _references(statement.value):
      if reference.is_macro:
        read.add(reference.name)
        _check_macro(statement, reference, macros)
      else:
        _configurable(reference.name.rpartition('/')[2], statement.where)
    if not statement.is_macro:
      _check_binding(statement, macros)
  _check_required(statements)
  for name, statement in macros.items():
    if name not in read:
      raise errors.ConfigError(
        f'{statement.where}: nothing reads the macro {name}; use it as '
        f'%{name}, or write Name.{name} to bind a parameter'
      )


def _check_required(statements: Sequence[Statement]) -> None:
  bound = {
    s.parameter
    for s in statements
    if s.selector.rpartition('.')[2] == 'Experiment'
  }
  for field in dataclasses.fields(experiments.Experiment):
    if field.default is dataclasses.MISSING and field.name not in bound:
      raise errors.ConfigError(
        f'Experiment.{field.name} is required; bind it in a gin file or with '
        f"--gin_bindings='Experiment.{field.name} = @...'"
      )


def _check_macro(
  statement: Statement, reference: gintexts.Reference, macros: Mapping[str, Any]
) -> None:
  if reference.name not in macros and not reference.name.startswith('gin.'):
    raise errors.ConfigError(
      f'{statement.where}: no macro is called %{reference.name}'
      + _suggest(reference.name, macros)
    )


def _check_binding(
  statement: Statement, macros: Mapping[str, Statement]
) -> None:
  function = _configurable(statement.selector, statement.where)
  parameters = _parameters(function)
  name = statement.parameter
  if name not in parameters:
    if '**' in parameters:
      return
    raise errors.ConfigError(
      f'{statement.where}: {statement.selector} has no parameter {name!r}'
      + _suggest(name, parameters)
    )
  value = statement.value
  if isinstance(value, gintexts.Reference) and value.name in macros:
    value = macros[value.name].value
  expected = parameters[name]
  if not isinstance(value, gintexts.Reference) and not _fits(value, expected):
    wanted = ' or '.join(_NAMES.get(k, k.__name__) for k in expected)
    raise errors.ConfigError(
      f'{statement.where}: {statement.selector}.{name} = {value!r} is '
      f'{type(value).__name__}, expected {wanted}'
    )


def _configurable(selector: str, where: str) -> Any:
  registry = gin_config._REGISTRY
  matches = registry.matching_selectors(selector)
  if len(matches) == 1:
    return registry[matches[0]].wrapped
  if matches:
    raise errors.ConfigError(
      f'{where}: {selector!r} may be any of {", ".join(sorted(matches))}; '
      'write more of its name'
    )
  short = {name.rpartition('.')[2] for name, _ in registry.items()}
  raise errors.ConfigError(
    f'{where}: no configurable is called {selector!r}'
    + (_suggest(selector, short) or '; is its module imported?')
  )


_Kinds = tuple[type, ...]
_CHECKED = (int, float, bool, str, type(None))
_NAMES = {type(None): 'None'}


def _parameters(function: Any) -> dict[str, _Kinds]:
  """Parameter -> types it takes, () for any; `**` stands for any name."""
  found: dict[str, _Kinds] = {}
  inits = [function]
  if inspect.isclass(function):
    inits = [
      vars(c)['__init__'] for c in function.__mro__ if '__init__' in vars(c)
    ]
  for init in inits:
    try:
      signature = inspect.signature(init)
      hints = typing.get_type_hints(init)
    except (TypeError, ValueError, NameError):
      hints = {}
    open_ended = False
    for parameter in signature.parameters.values():
      if parameter.kind is parameter.VAR_KEYWORD:
        open_ended = True
      elif parameter.kind is not parameter.VAR_POSITIONAL:
        kinds = _kinds(hints.get(parameter.name), parameter.default)
        found.setdefault(parameter.name, kinds)
    if not open_ended:
      return found  # what a base class takes, this one does not pass on
  return {**found, '**': ()} if not inspect.isclass(function) else found


def _kinds(hint: Any, default: Any) -> _Kinds:
  if hint is not None:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    return tuple(options) if all(o in _CHECKED for o in options) else ()
  if type(default) in (bool, int, float):
    return (type(default),)
  return ()


def _fits(value: Any, kinds: _Kinds) -> bool:
  if not kinds:
    return True
  if type(value) in kinds:
    return True
  return (
    isinstance(value, int) and not isinstance(value, bool) and float in kinds
  )


def _references(value: Any) -> Iterator[gintexts.Reference]:
  if isinstance(value, gintexts.Reference):
    yield value
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from _references(key)
      yield from _references(item)
  elif isinstance(value, list | tuple):
    for item in value:
      yield from _references(item)


def _suggest(name: str, known: Any) -> str:
  close = difflib.get_close_matches(name, [k for k in known if k != '**'], n=1)
  return f'; did you mean {close[0]!r}?' if close else ''


def values(text: str) -> dict[str, str]:
  """Binding -> value as text, macros resolved."""
  statements = [
    s
    for s in config_parser.ConfigParser(text, gintexts.Delegate())
    if isinstance(s, config_parser.BindingStatement)
  ]
  macros = {s.selector: s.value for s in statements if not s.arg_name}
  values = {}
  for s in statements:
    if s.arg_name:
      value = s.value
      if isinstance(value, gintexts.Reference) and value.is_macro:
        value = macros.get(value.name, value)
      scope = f'{s.scope}/' if s.scope else ''
      selector = s.selector.removeprefix('tftrain.')
      values[f'{scope}{selector}.{s.arg_name}'] = repr(value)
  return values

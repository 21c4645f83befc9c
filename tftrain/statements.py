"""Reading gin files, before gin runs them."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import difflib
import importlib
import os
import pathlib
import re
import tokenize
from typing import Any

from gin import config as gin_config
from gin import config_parser

from tftrain import errors
from tftrain import spellings


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@scope/name`, `@scope/name()` or `%NAME`, as a value."""

  name: str
  is_macro: bool = False
  called: bool = False

  @property
  def scope(self) -> str:
    return '' if self.is_macro else self.name.rpartition('/')[0]

  @property
  def selector(self) -> str:
    return self.name.rpartition('/')[2]

  def __repr__(self) -> str:
    mark = '%' if self.is_macro else '@'
    return f'{mark}{self.name}{"()" if self.called else ""}'


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
  def configurable_reference(self, name: str, evaluate: bool) -> Reference:
    return Reference(name, called=evaluate)

  def macro(self, name: str) -> Reference:
    return Reference(name, is_macro=True)


@dataclasses.dataclass(frozen=True)
class Text:
  """A gin text and where it comes from.

  Attributes:
    content: What it says.
    origin: Its file, or the flag that it was given with.
    folder: Where its includes are looked for first.
    value_of: Of a flag `--gin.NAME=VALUE`, the VALUE.
  """

  content: str
  origin: str
  folder: pathlib.Path | None = None
  value_of: str | None = None

  def where(self, line: int) -> str:
    return self.origin if self.folder is None else f'{self.origin}:{line}'


class Names:
  """What the names of one text mean.

  By what is registered; or, after `from __gin__ import dynamic_registration`,
  by the imports of the text, as in Python.
  """

  def __init__(self) -> None:
    self._context = gin_config.ParseContext()

  @property
  def is_dynamic(self) -> bool:
    return bool(self._context._dynamic_registration)

  def add(self, statement: Any) -> None:
    self._context.process_import(statement)

  def find(self, selector: str, where: str) -> Any:
    """gin's Configurable of a name.

    Raises:
      ConfigError: There is none, or more than one.
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
        suggest(selector, short)
        or suggest(selector.rpartition('.')[2], short)
        or '; is its module imported?'
      )
    )

  def _imported(self, selector: str, where: str) -> Any:
    """Registers what has not been registered yet."""
    symbols = self._context._symbol_table
    first, *rest = selector.split('.')
    if first not in symbols:
      raise errors.ConfigError(
        f'{where}: no import of this file provides {first!r} of {selector!r}'
        + (
          suggest(first, symbols)
          or f'; with dynamic registration, import {first!r} here'
        )
      )
    found, path = symbols[first], first
    for name in rest:
      if not hasattr(found, name):
        close = suggest(name, dir(found), f'{path}.')
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
  """One binding and where it stands."""

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
    """The full name of a macro."""
    if self.parameter:  # %NAME.value is the long way to say so
      return self.scope
    return f'{self.scope}/{self.selector}' if self.scope else self.selector

  @property
  def name(self) -> str:
    """As it was written."""
    if self.is_macro:
      return self.macro
    scope = f'{self.scope}/' if self.scope else ''
    return f'{scope}{self.selector}.{self.parameter}'

  @property
  def configurable(self) -> Any:
    """gin's Configurable whose parameter it binds."""
    return self.names.find(self.selector, self.where)


def of_file(
  name: str, roots: Sequence[pathlib.Path], where: str = '--gin_file'
) -> Text:
  path = find(name, roots, where)
  return Text(text_of(path), _shown(path), path.parent)


def _shown(path: pathlib.Path) -> str:
  """Short where it lies below the working directory."""
  here = pathlib.Path.cwd()
  return str(path.relative_to(here) if path.is_relative_to(here) else path)


def parsed(text: Text) -> Iterator[tuple[str, Any]]:
  """(where it stands, gin's statement) of each statement of a text.

  Raises:
    ConfigError: It is not gin; says what may have been meant.
  """
  try:
    for statement in config_parser.ConfigParser(text.content, _Delegate()):
      yield text.where(statement.location.line_num), statement
  except (
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    RecursionError,
  ) as error:
    raise errors.ConfigError(_said(text, error)) from error


def _said(text: Text, error: Exception) -> str:
  line = getattr(error, 'lineno', None) or 0
  where = text.where(line) if line else text.origin
  if text.value_of is not None:
    said = spellings.of_flag(text.origin, text.value_of, registered)
    if said:
      return f'{text.origin}={errors.brief(text.value_of)}: {said}'
  if isinstance(error, RecursionError):
    said = 'not gin: brackets within too many brackets'
  elif isinstance(error, tokenize.TokenError):
    said = 'not gin: a bracket or a quote is left open'
  elif isinstance(error, SyntaxError) and error.text:
    meant = spellings.of_line(error.text, error.offset or 0, registered)
    if meant and _IN_VALUE.search(error.msg):
      return f'{where}: {meant}'
    said = f'not gin: {errors.brief(error.text.strip())}'
  else:
    said = f'not gin: {errors.one_line(error)}'
  return (
    f"{where}: {said}; values are Python literals (True, 0.1, 'text'), @name, "
    '@name() or %MACRO'
  )


# What gin says of a value, not of a statement.
_IN_VALUE = re.compile(
  "Unable to parse value|Failed to parse token|Expected newline|Expected ','"
)


def registered(name: str) -> Any:
  """The class or function that is registered by a name, if it is one."""
  matches = gin_config._REGISTRY.matching_selectors(name)
  return gin_config._REGISTRY[matches[0]].wrapped if len(matches) == 1 else None


def included(
  text: Text, statement: Any, where: str, roots: Sequence[pathlib.Path]
) -> Text:
  """The text that an include names: beside the file, else in the roots."""
  beside = [] if text.folder is None else [text.folder]
  return of_file(statement.filename, [*beside, *roots], where)


@contextlib.contextmanager
def opened(text: Text, where: str, open_files: list[str]) -> Iterator[None]:
  """While a text is read; a file that includes itself is refused."""
  if text.folder is not None and text.origin in open_files:
    raise errors.ConfigError(
      f'{where}: {text.origin} includes itself; take one of the includes away'
    )
  open_files.append(text.origin)
  yield
  open_files.pop()


def read(
  text: Text,
  roots: Sequence[pathlib.Path],
  where: str = '',
  open_files: list[str] | None = None,
) -> Iterator[Statement]:
  """The bindings of a gin text and its includes; imports what it imports."""
  open_files = [] if open_files is None else open_files
  names = Names()
  with opened(text, where, open_files):
    for where, statement in parsed(text):
      if isinstance(statement, config_parser.ImportStatement):
        _import(statement, where, names)
      elif isinstance(statement, config_parser.IncludeStatement):
        inner = included(text, statement, where, roots)
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


def bind(text: Text, roots: Sequence[pathlib.Path]) -> None:
  """Has gin take a text that was read and checked.

  As gin.parse_config does; but gin looks includes up from the working directory
  only.
  """
  parser = config_parser.ConfigParser(text.content, gin_config.ParserDelegate())
  with gin_config._parse_scope() as context:
    for statement in parser:
      if isinstance(statement, config_parser.ImportStatement):
        context.process_import(statement)
      elif isinstance(statement, config_parser.IncludeStatement):
        bind(included(text, statement, 'include', roots), roots)
      elif isinstance(statement, config_parser.BindingStatement):
        scope, selector, parameter, value, _ = statement
        if not parameter:
          scope = f'{scope}/{selector}' if scope else selector
          selector, parameter = 'gin.macro', 'value'
        gin_config.bind_parameter((scope, selector, parameter), value)
    gin_config._IMPORTS.update(context.imports)


def text_of(path: pathlib.Path) -> str:
  """What a gin file says.

  Raises:
    ConfigError: It is no text, or may not be read.
  """
  try:
    return path.read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.ConfigError(
      f'{path} cannot be read as text: {errors.one_line(error)}; give a gin '
      'file in UTF-8'
    ) from error


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


def find(name: str, roots: Sequence[pathlib.Path], where: str) -> pathlib.Path:
  tried = [root / name for root in roots]
  for path in tried:
    if path.is_file():
      return path.resolve()
  nearby = [
    p for root in roots for p in (*root.glob('*.gin'), *root.glob('*/*.gin'))
  ]
  by_name = {path.name: path for path in nearby}
  close = difflib.get_close_matches(pathlib.Path(name).name, by_name, n=1)
  hint = f'; did you mean {by_name[close[0]]}?' if close else ''
  searched = ', '.join(dict.fromkeys(str(root) for root in roots))
  raise errors.ConfigError(f'{where}: no file {name!r} in {searched}{hint}')


def references(value: Any) -> Iterator[Reference]:
  """What a value refers to, however deep."""
  if isinstance(value, Reference):
    yield value
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from references(key)
      yield from references(item)
  elif isinstance(value, list | tuple):
    for item in value:
      yield from references(item)


def suggest(name: str, known: Any, before: str = '') -> str:
  """`; did you mean ...?`, or nothing where nothing is near."""
  close = difflib.get_close_matches(name, [k for k in known if k != '**'], n=1)
  return f'; did you mean {before + close[0]!r}?' if close else ''


def values(text: str) -> dict[str, str]:
  """Binding -> value as text, macros resolved."""
  found = [
    s
    for s in config_parser.ConfigParser(text, _Delegate())
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
      if isinstance(value, Reference) and value.is_macro:
        value = macros.get(value.name, value)
      scope = f'{s.scope}/' if s.scope else ''
      selector = s.selector.removeprefix('tftrain.')
      if selector.endswith('.Experiment'):  # as dynamic registration writes it
        selector = 'Experiment'
      values[f'{scope}{selector}.{s.arg_name}'] = repr(value)
  return values

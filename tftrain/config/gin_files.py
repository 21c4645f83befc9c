"""Gin files as text: found, read, and put together without running anything.

No module is imported, so that programs without TensorFlow can read a
configuration.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import difflib
import pathlib
import re
import tokenize
from typing import Any

from gin import config as gin_config
from gin import config_parser

from tftrain import errors
from tftrain.config import _suggestions

BINDINGS = '--gin_bindings'
"""Where bindings of the command line stand."""


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


class Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
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


def roots(search_paths: Sequence[str]) -> list[pathlib.Path]:
  """Where gin files and the modules they import are looked for, in order."""
  package = pathlib.Path(__file__).parent
  bundled = package / 'bundled'  # in the wheel; in a checkout they lie beside
  shipped = bundled if bundled.is_dir() else package.parent
  return [
    pathlib.Path.cwd(),
    *map(pathlib.Path, search_paths),
    shipped,
    shipped / 'configs',
  ]


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
    for statement in config_parser.ConfigParser(text.content, Delegate()):
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
    said = _suggestions.of_flag(text.origin, text.value_of, registered)
    if said:
      return f'{text.origin}={errors.brief(text.value_of)}: {said}'
  if isinstance(error, RecursionError):
    said = 'not gin: brackets within too many brackets'
  elif isinstance(error, tokenize.TokenError):
    said = 'not gin: a bracket or a quote is left open'
  elif isinstance(error, SyntaxError) and error.text:
    meant = _suggestions.of_line(error.text, error.offset or 0, registered)
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

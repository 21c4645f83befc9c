"""Gin files as text: finds, reads and parses them without running any code.

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
"""The origin of bindings from the command line."""


@dataclasses.dataclass(frozen=True)
class Reference:
  """A reference as a value: `@scope/name`, `@scope/name()` or `%NAME`."""

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
  """A gin text and its origin.

  Attributes:
    content: The gin text.
    origin: File or flag that the text comes from.
    folder: Directory to search for includes first; None for a flag.
    value_of: The VALUE of a flag `--gin.NAME=VALUE`; None otherwise.
  """

  content: str
  origin: str
  folder: pathlib.Path | None = None
  value_of: str | None = None

  def where(self, line: int) -> str:
    return self.origin if self.folder is None else f'{self.origin}:{line}'


def roots(search_paths: Sequence[str]) -> list[pathlib.Path]:
  """Returns the directories to search for gin files and modules, in order."""
  package = pathlib.Path(__file__).parents[1]
  bundled = package / 'bundled'  # in the wheel, not in a checkout
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
  return Text(text_of(path), _relative_path(path), path.parent)


def _relative_path(path: pathlib.Path) -> str:
  """Returns a path, relative to the working directory if it is inside."""
  here = pathlib.Path.cwd()
  return str(path.relative_to(here) if path.is_relative_to(here) else path)


def parsed(text: Text) -> Iterator[tuple[str, Any]]:
  """Yields (location, gin's statement) for each statement of a text.

  Raises:
    ConfigError: If `text` is not valid gin; the message suggests a correction.
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
    raise errors.ConfigError(_parse_error_message(text, error)) from error


def _parse_error_message(text: Text, error: Exception) -> str:
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


# gin's messages about values, as opposed to statements.
_IN_VALUE = re.compile(
  "Unable to parse value|Failed to parse token|Expected newline|Expected ','"
)


def registered(name: str) -> Any:
  """Returns the class or function of a name; None if unknown or ambiguous."""
  matches = gin_config._REGISTRY.matching_selectors(name)
  return gin_config._REGISTRY[matches[0]].wrapped if len(matches) == 1 else None


def included(
  text: Text, statement: Any, where: str, roots: Sequence[pathlib.Path]
) -> Text:
  """Returns an included text: beside the including file, else in `roots`."""
  beside = [] if text.folder is None else [text.folder]
  return of_file(statement.filename, [*beside, *roots], where)


@contextlib.contextmanager
def opened(text: Text, where: str, open_files: list[str]) -> Iterator[None]:
  """Tracks a text while it is read; rejects a file that includes itself."""
  if text.folder is not None and text.origin in open_files:
    raise errors.ConfigError(
      f'{where}: {text.origin} includes itself; take one of the includes away'
    )
  open_files.append(text.origin)
  yield
  open_files.pop()


def text_of(path: pathlib.Path) -> str:
  """Returns the text of a gin file.

  Raises:
    ConfigError: If `path` cannot be read, or is not UTF-8.
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
  """Yields all references in a value, at any depth."""
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
  """Returns `; did you mean ...?` for a similar name, or ''."""
  close = difflib.get_close_matches(name, [k for k in known if k != '**'], n=1)
  return f'; did you mean {before + close[0]!r}?' if close else ''

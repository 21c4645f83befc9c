"""Gin files as text: found, read, and put together without running anything.

No name is looked up and no module imported, so that programs without
TensorFlow can read a configuration.
"""

import ast
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import difflib
import pathlib
import tokenize
from typing import Any

from gin import config_parser

from tftrain import errors

Value = bool | int | float | str

BINDINGS = '--gin_bindings'
"""Where bindings of the command line stand."""


@dataclasses.dataclass(frozen=True)
class Reference:
  """`@name`, `@name()` or `%MACRO`, as it was written."""

  name: str
  is_macro: bool = False
  called: bool = False

  def __repr__(self) -> str:
    mark = '%' if self.is_macro else '@'
    return f'{mark}{self.name}{"()" if self.called else ""}'


class Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
  """Leaves references as they are."""

  def configurable_reference(self, name: str, evaluate: bool) -> Reference:
    return Reference(name, called=evaluate)

  def macro(self, name: str) -> Reference:
    return Reference(name, is_macro=True)


def parse(text: str, origin: str) -> Iterator[tuple[str, Any]]:
  """(where it stands, statement) for each statement of a gin text.

  Raises:
    ConfigError: It is not gin; the line is shown.
  """
  where = origin
  try:
    for statement in config_parser.ConfigParser(text, Delegate()):
      if origin != BINDINGS:
        where = f'{origin}:{statement.location.line_num}'
      yield where, statement
  except errors.Error:
    raise
  except (
    SyntaxError,
    ValueError,
    tokenize.TokenError,
    RecursionError,
  ) as error:
    line = getattr(error, 'lineno', None)
    if line and origin != BINDINGS:
      where = f'{origin}:{line}'
    content = (getattr(error, 'text', None) or '').strip()
    said = errors.brief(content) or errors.one_line(error)
    if isinstance(error, RecursionError):
      said = 'brackets within too many brackets'
    elif isinstance(error, tokenize.TokenError):
      said = 'a bracket or a quote is left open'
    raise errors.ConfigError(
      f'{where}: not gin: {said}; values are '
      "Python literals (True, 0.1, 'text'), @name, @name() or %MACRO"
    ) from error


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


def flattened(text: str, roots: Sequence[pathlib.Path]) -> str:
  """A gin text with the texts of its includes in their places.

  gin looks includes up from the working directory only.
  """
  lines = text.splitlines()
  for statement in config_parser.ConfigParser(text, Delegate()):
    if isinstance(statement, config_parser.IncludeStatement):
      path = find(statement.filename, roots, where='include')
      line = statement.location.line_num - 1
      lines[line] = flattened(text_of(path), roots)
  return '\n'.join(lines) + '\n'


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


def assigned(bindings: Sequence[str]) -> dict[str, Value]:
  """Name -> value of bindings; what is no plain value stays a text."""
  found = {}
  for line in '\n'.join(bindings).splitlines():
    name, equals, text = line.partition('=')
    if equals:
      found[name.strip()] = _plain(text.strip())
  return found


def _plain(text: str) -> Value:
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
  return value if isinstance(value, bool | int | float | str) else text

"""Literals: bool, int, float and str values of `NAME=VALUE` texts."""

import ast
from collections.abc import Sequence

Value = bool | int | float | str


def assigned(bindings: Sequence[str]) -> dict[str, Value]:
  """Returns name -> value of bindings; other expressions remain strings."""
  found = {}
  for line in '\n'.join(bindings).splitlines():
    name, equals, text = line.partition('=')
    if equals:
      found[name.strip()] = _parse_literal(text.strip())
  return found


def _parse_literal(text: str) -> Value:
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
  return value if isinstance(value, bool | int | float | str) else text

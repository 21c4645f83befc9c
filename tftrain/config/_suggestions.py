"""Suggested corrections for values that gin cannot parse."""

import ast
from collections.abc import Callable
import inspect
import re
import shlex
from typing import Any

from tftrain import errors

_CONSTANTS = {
  'true': 'True',
  'false': 'False',
  'none': 'None',
  'null': 'None',
  'nil': 'None',
  'inf': '1e999',
}
_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
  ast.Add: lambda a, b: a + b,
  ast.Sub: lambda a, b: a - b,
  ast.Mult: lambda a, b: a * b,
  ast.Div: lambda a, b: a / b,
  ast.FloorDiv: lambda a, b: a // b,
  ast.Mod: lambda a, b: a % b,
  ast.Pow: lambda a, b: a**b,
}
_NAME = re.compile(r'((?:\w+/)*)([A-Za-z_][\w.]*)(\(\))?')
_LONGEST = 100
_LARGEST = 1e18

Registered = Callable[[str], Any]
"""A function from a name to the registered class or function, or None."""


def of_line(line: str, offset: int, registered: Registered) -> str | None:
  """Returns an error message for a line that gin cannot parse at `offset`.

  Returns None if no correction is known.
  """
  begin, equals, _ = line.partition('=')
  text = _value_at(line, max(offset, len(begin + equals) if equals else 0))
  advice = correction(text, registered)
  if not advice:
    return None
  return f'{errors.brief(text)!r} is not a gin value; {advice[0]}'


def _value_at(line: str, offset: int) -> str:
  """Returns the value, or the item of a list, at an offset of a line."""
  line = line.partition('#')[0].rstrip()
  starts = [0]  # offsets of the values open at `offset`, innermost last
  for place in re.finditer(r'[=,:](?=\s|$)|[\[{(]|[\]})]|=', line[:offset]):
    if place[0] in '[{(':
      starts.append(place.end())
    elif place[0] in ']})':
      starts = starts[:-1] or [0]
    else:
      starts[-1] = place.end()
  start = starts[-1]
  end = re.search(r'[,\]}]|$', line[max(offset, start) :])
  assert end  # $ always matches
  text = line[start : max(offset, start) + end.start()].strip()
  while text.count(')') > text.count('('):
    text = text[: text.rindex(')')].rstrip()
  return text


def of_flag(flag: str, value: str, registered: Registered) -> str | None:
  """Returns an error message for `--gin.NAME=VALUE` with an invalid VALUE.

  Returns None if no correction is known.
  """
  advice = correction(value, registered)
  if not advice:
    return None
  said, meant = advice
  text = shlex.quote(meant)
  return f'not a gin value; {said.partition(":")[0]}: {flag}={text}'


def correction(text: str, registered: Registered) -> tuple[str, str] | None:
  """Returns (advice, corrected value) for a text; None if none is known."""
  text = text.strip()
  if not text or len(text) > _LONGEST or '\n' in text:
    return None
  constant = _CONSTANTS.get(text.lower())
  if constant:
    return f'use {constant}', constant
  number = _computed(text)
  if number is not None:
    return f'gin has no arithmetic: write {number!r}', repr(number)
  name = _NAME.fullmatch(text)
  if name and (named := registered(name[2])) is not None:
    bare = f'@{name[1]}{name[2]}'
    one, other = ('class', 'instance')
    if not inspect.isclass(named):
      one, other = ('function', 'what it returns')
    meant = bare + (name[3] or '')
    return f'use {bare} ({one}) or {bare}() ({other})', meant
  if re.fullmatch(r'[A-Z][A-Z0-9_]+', text):
    return f'use %{text} (macro) or quotes: "{text}"', f'%{text}'
  if re.fullmatch(r'[A-Za-z_./~$*?][\w./~$*?:@+-]*', text):
    return f'strings need quotes: "{text}"', f'"{text}"'
  return None


def _computed(text: str) -> int | float | None:
  """Returns the value of an arithmetic expression; None for other texts."""
  try:
    tree = ast.parse(text, mode='eval').body
    if not isinstance(tree, ast.BinOp):
      return None
    value = _constant(tree)
  except (SyntaxError, ValueError, ArithmeticError, TypeError):
    return None
  return value


def _constant(node: ast.expr) -> int | float:
  """Returns the value of an expression of numbers.

  Raises:
    ValueError: If `node` has anything but numbers, or its value is too large.
  """
  value: int | float
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    value = node.value  # type: ignore[assignment]
  elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    value = -_constant(node.operand)
  elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
    left, right = _constant(node.left), _constant(node.right)
    if isinstance(node.op, ast.Pow) and abs(right) > 100:
      raise ValueError('too large')
    value = _OPERATIONS[type(node.op)](left, right)
  else:
    raise ValueError('no number')
  if isinstance(value, complex) or not abs(value) < _LARGEST:
    raise ValueError('too large')
  return value

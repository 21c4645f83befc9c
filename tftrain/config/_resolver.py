"""What a configuration comes to: which binding holds, and who is reached."""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from gin import config as gin_config

from tftrain import errors
from tftrain.config import _python_usage
from tftrain.config import gin_files as gin_files_lib
from tftrain.config import gin_parser
from tftrain.experiment import experiment as experiment_lib

EXPERIMENT = 'tftrain.Experiment'
FACTORIES = ('task', 'train_data', 'eval_data')
"""What an Experiment calls, without arguments."""

Place = tuple[str, str]
"""(selector, scope)."""


class Recipe:
  """The bindings that hold in the end, and what they lead to.

  Attributes:
    bound: (selector, scope) -> parameter -> the Statement that holds.
    macros: Name -> the Statement that holds.
    called: Which of `reached` are called without arguments.
  """

  def __init__(self, found: Sequence[gin_parser.Statement]):
    self.bound: dict[Place, dict[str, gin_parser.Statement]] = {}
    self.macros: dict[str, gin_parser.Statement] = {}
    self.usage = _python_usage.find()
    for statement in found:
      if statement.is_macro:
        self.macros[statement.macro] = statement
      else:
        place = (statement.configurable.selector, statement.scope)
        self.bound.setdefault(place, {})[statement.parameter] = statement
    self.called: set[Place] = set()
    self.reached: dict[Place, str] = {}
    self._reach(EXPERIMENT, '', 'Experiment')
    for selector, scope in list(self.bound):
      if selector in self.usage.called:
        self._reach(selector, scope, 'Python')

  def bindings(
    self, selector: str, scope: str
  ) -> dict[str, gin_parser.Statement]:
    """Parameter -> the Statement that holds for it in a scope."""
    found = dict(self.bound.get((selector, ''), {}))
    parts = scope.split('/') if scope else []
    for end in range(1, len(parts) + 1):
      found.update(self.bound.get((selector, '/'.join(parts[:end])), {}))
    return found

  def references(
    self, statement: gin_parser.Statement, scope: str
  ) -> Iterator[tuple[gin_files_lib.Reference, Any, str]]:
    """(reference, gin's Configurable, scope) of all that a value refers to."""
    for reference, origin in self._plain(statement, ()):
      configurable = origin.names.find(reference.selector, origin.where)
      yield reference, configurable, reference.scope or scope

  def _plain(
    self, statement: gin_parser.Statement, through: tuple[str, ...]
  ) -> Iterator[tuple[gin_files_lib.Reference, gin_parser.Statement]]:
    """References, and the Statement that has each: macros lead to others."""
    for reference in gin_files_lib.references(statement.value):
      name = reference.name
      if not reference.is_macro:
        yield reference, statement
      elif name in through:
        raise errors.ConfigError(
          f'{statement.where}: the macro {name} is made of itself; give it a '
          'value'
        )
      elif name in self.macros:
        yield from self._plain(self.macros[name], (*through, name))

  def source(
    self, statement: gin_parser.Statement
  ) -> tuple[Any, gin_parser.Statement]:
    """(value, the Statement that has it): that of the last macro."""
    seen = set()
    while isinstance(statement.value, gin_files_lib.Reference):
      name = statement.value.name
      if not statement.value.is_macro or name not in self.macros:
        break
      if name in seen:
        break  # said elsewhere
      seen.add(name)
      statement = self.macros[name]
    return statement.value, statement

  def _reach(self, selector: str, scope: str, where: str) -> None:
    if (selector, scope) in self.reached:
      return
    self.reached[selector, scope] = where
    for name, statement in self.bindings(selector, scope).items():
      made = selector == EXPERIMENT and name in FACTORIES
      for reference, configurable, inner in self.references(statement, scope):
        if reference.called or made:
          self.called.add((configurable.selector, inner))
        self._reach(configurable.selector, inner, statement.where)


def wrapped(selector: str) -> Any:
  """The class or function of a full selector."""
  if selector == EXPERIMENT:
    return experiment_lib.Experiment
  return gin_config._REGISTRY[selector].wrapped


def short(selector: str) -> str:
  """As little of a selector as names it."""
  return str(gin_config._REGISTRY.minimal_selector(selector))

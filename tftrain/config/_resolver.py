"""Resolution of bindings: those in effect, and the parameters they may set."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import inspect
import types
import typing
from typing import Any

from gin import config as gin_config

from tftrain import errors
from tftrain.config import _python_usage
from tftrain.config import gin_files as gin_files_lib
from tftrain.config import gin_parser
from tftrain.experiment import experiment as experiment_lib

EXPERIMENT = 'tftrain.Experiment'
FACTORIES = ('task', 'train_data', 'eval_data')
"""The parameters of an Experiment that it calls without arguments."""

Kinds = tuple[type, ...]

NONE = inspect.Parameter.empty
"""The default of a parameter without one."""

_CHECKED = (int, float, bool, str, type(None))
_NAMES = {type(None): 'None'}

Place = tuple[str, str]
"""(selector, scope)."""


class Recipe:
  """The bindings in effect, and the configurables that they reach.

  Attributes:
    bound: (selector, scope) -> parameter -> the Statement in effect.
    macros: Name -> the Statement in effect.
    usage: The gin usage of Python code.
    called: Those of `reached` that are called without arguments.
    reached: (selector, scope) -> location of the first reference to it.
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
    """Returns parameter -> the Statement in effect within a scope."""
    found = dict(self.bound.get((selector, ''), {}))
    parts = scope.split('/') if scope else []
    for end in range(1, len(parts) + 1):
      found.update(self.bound.get((selector, '/'.join(parts[:end])), {}))
    return found

  def references(
    self, statement: gin_parser.Statement, scope: str
  ) -> Iterator[tuple[gin_files_lib.Reference, Any, str]]:
    """Yields (reference, gin's Configurable, scope) for a Statement's value."""
    for reference, origin in self._plain(statement, ()):
      configurable = origin.names.find(reference.selector, origin.where)
      yield reference, configurable, reference.scope or scope

  def _plain(
    self, statement: gin_parser.Statement, through: tuple[str, ...]
  ) -> Iterator[tuple[gin_files_lib.Reference, gin_parser.Statement]]:
    """Yields each reference and its Statement, with macros resolved."""
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
    """Returns (value, its Statement), with macros resolved."""
    seen = set()
    while isinstance(statement.value, gin_files_lib.Reference):
      name = statement.value.name
      if not statement.value.is_macro or name not in self.macros:
        break
      if name in seen:
        break  # _plain() already raises for cyclic macros
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
  """Returns the class or function of a full selector."""
  if selector == EXPERIMENT:
    return experiment_lib.Experiment
  return gin_config._REGISTRY[selector].wrapped


def short(selector: str) -> str:
  """Returns the shortest unambiguous form of a selector."""
  return str(gin_config._REGISTRY.minimal_selector(selector))


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One parameter of a class or function.

  Attributes:
    kinds: Accepted types; () accepts any.
    default: Default value, or NONE.
  """

  kinds: Kinds = ()
  default: Any = NONE

  @property
  def must_be_bound(self) -> bool:
    """True if the default is gin.REQUIRED, so that gin must bind it."""
    return self.default is gin_config.REQUIRED

  def fits(self, value: Any) -> bool:
    if not self.kinds or type(value) in self.kinds:
      return True
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and float in self.kinds

  @property
  def wanted(self) -> str:
    return ' or '.join(_NAMES.get(k, k.__name__) for k in self.kinds)


def parameters_of(function: Any) -> dict[str, Parameter]:
  """Returns name -> Parameter; `**` stands for any name."""
  found: dict[str, Parameter] = {}
  inits, own = [function], 0
  if inspect.isclass(function):
    own = 1  # self
    inits = [
      vars(c)['__init__'] for c in function.__mro__ if '__init__' in vars(c)
    ]
  for init in inits:
    try:
      signature = inspect.signature(init)
    except (TypeError, ValueError):  # a C function without a signature
      return {**found, '**': Parameter()}
    hints = _hints(init)
    open_ended = False
    for parameter in [*signature.parameters.values()][own:]:
      if parameter.kind is parameter.VAR_KEYWORD:
        open_ended = True
      elif parameter.kind is not parameter.VAR_POSITIONAL:
        kinds = _accepted_types(hints.get(parameter.name), parameter.default)
        found.setdefault(parameter.name, Parameter(kinds, parameter.default))
    if not open_ended:
      return found  # without **kwargs, nothing reaches a base class
  return found if inspect.isclass(function) else {**found, '**': Parameter()}


def _hints(init: Any) -> dict[str, Any]:
  try:
    return typing.get_type_hints(init)
  except (TypeError, ValueError, NameError, AttributeError):
    return {}


def _accepted_types(hint: Any, default: Any) -> Kinds:
  if hint is not None:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    return tuple(options) if all(o in _CHECKED for o in options) else ()
  if type(default) in (bool, int, float):
    return (type(default),)
  return ()

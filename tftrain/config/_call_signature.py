"""Signatures of configurables: names, types and defaults of parameters."""

import dataclasses
import inspect
import types
import typing
from typing import Any

from gin import config as gin_config

Kinds = tuple[type, ...]

NONE = inspect.Parameter.empty
"""The default of a parameter without one."""

_CHECKED = (int, float, bool, str, type(None))
_NAMES = {type(None): 'None'}


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


def of(function: Any) -> dict[str, Parameter]:
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

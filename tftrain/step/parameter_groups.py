"""Parameter groups: freezing, learning rates and weight decay by variable name.

Patterns are regular expressions that are searched for in variable names.
"""

from collections.abc import Iterable
import re
from typing import NamedTuple

from tftrain import errors
from tftrain.step import update_options


class Group(NamedTuple):
  """The update options that the variables of one group share.

  Attributes:
    pattern: The pattern in `Update.rates` that matches the variables, or ''.
    factor: Factor of the optimizer's learning rate.
    decays: Whether the optimizer's weight decay applies.
  """

  pattern: str = ''
  factor: float = 1.0
  decays: bool = True


def group_of(options: update_options.Update, name: str) -> Group:
  """Returns the group of the variable called `name`."""
  decays = not matches(options.no_decay, name)
  for pattern, factor in options.rates.items():
    if matches(pattern, name):
      return Group(pattern, factor, decays)
  return Group(decays=decays)


def matches(pattern: str | None, name: str) -> bool:
  return pattern is not None and re.search(pattern, name) is not None


def check_patterns(
  options: update_options.Update,
  variables: Iterable[str],
  layers: Iterable[str],
) -> None:
  """Raises ConfigError if a pattern matches nothing or freezes everything."""
  variables, layers = list(variables), list(layers)
  for argument, pattern in options.patterns():
    what, names = 'variables', variables
    if argument == 'remat':
      what, names = 'layers', layers
    if not any(matches(pattern, name) for name in names):
      raise errors.ConfigError(
        f'Update.{argument}: {pattern!r} matches none of the {what}; there are '
        + errors.listing(names)
      )
  if variables and all(matches(options.freeze, name) for name in variables):
    raise errors.ConfigError(
      f'Update.freeze = {options.freeze!r} leaves nothing to train'
    )

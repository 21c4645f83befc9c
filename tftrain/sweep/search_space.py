"""Search spaces: grids, unions, zipped bindings and distributions."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
import random
import re
from typing import Any

from tftrain import errors

Assignment = dict[str, Any]
"""Binding name -> value."""

_NAME = re.compile(r'(?:[A-Za-z_]\w*/)*[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*')
_KINDS = ('uniform', 'log_uniform', 'int', 'log_int')
_CALL = re.compile(r'(\w+)\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)')
_TRIES = 1000
_REFUSED = 'Experiment.seed'


@dataclasses.dataclass(frozen=True)
class Distribution:
  """A range to draw from, such as `log_uniform(1e-5, 1e-2)`.

  Attributes:
    kind: `uniform`, `log_uniform`, `int` or `log_int`; ints include `high`.
    low: Least value.
    high: Greatest value.
  """

  kind: str
  low: float
  high: float

  @property
  def is_int(self) -> bool:
    return self.kind.endswith('int')

  @property
  def is_log(self) -> bool:
    return self.kind.startswith('log')

  def draw(self, generator: random.Random) -> float:
    """Returns a random value.

    Floats have six digits, so that names and files stay short.
    """
    low, high = self.low, self.high
    if self.kind == 'int':
      return generator.randint(int(low), int(high))
    if self.is_log:
      value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
      value = generator.uniform(low, high)
    if self.is_int:
      return max(int(low), min(int(high), round(value)))
    return max(low, min(high, float(f'{value:.6g}')))


@dataclasses.dataclass(frozen=True)
class Dimension:
  """One binding to vary, or several that are zipped.

  Attributes:
    names: Names of the bindings.
    choices: A tuple of values for each choice; empty if `range` is given.
    range: Range of the values; None if `choices` are given.
  """

  names: tuple[str, ...]
  choices: tuple[tuple[Any, ...], ...] = ()
  range: Distribution | None = None

  def draw(self, generator: random.Random) -> Assignment:
    if self.range:
      return {self.names[0]: self.range.draw(generator)}
    return self.assign(generator.choice(self.choices))

  def assign(self, values: Sequence[Any]) -> Assignment:
    return dict(zip(self.names, values, strict=True))

  def ends(self) -> list[Assignment]:
    """Returns all choices, or both ends of the range."""
    if self.range is None:
      return [self.assign(values) for values in self.choices]
    kind = int if self.range.is_int else float
    return [
      {self.names[0]: kind(end)} for end in (self.range.low, self.range.high)
    ]


Branch = tuple[Dimension, ...]
Space = tuple[Branch, ...]
"""A union: each branch varies its own bindings."""


def parse(given: Any) -> Space:
  """Parses `Sweep.space`.

  Raises:
    ConfigError: If `given` is not a valid space; the message names the key.
  """
  branches = given if isinstance(given, list) else [given]
  if not branches or not all(isinstance(b, dict) and b for b in branches):
    raise errors.ConfigError(
      f'Sweep.space = {errors.brief(repr(given))} is neither a dict of '
      "choices, such as {'Adam.learning_rate': [0.01, 0.001]}, nor a list of "
      'such dicts'
    )
  return tuple(_branch(branch) for branch in branches)


def _branch(given: Mapping[Any, Any]) -> Branch:
  dimensions = tuple(_dimension(key, value) for key, value in given.items())
  names = [name for dimension in dimensions for name in dimension.names]
  for name in names:
    if names.count(name) > 1:
      raise errors.ConfigError(
        f'Sweep.space varies {name} twice; leave one of them out'
      )
  return dimensions


def _dimension(key: Any, value: Any) -> Dimension:
  names = key if isinstance(key, tuple) else (key,)
  for name in names:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
      raise errors.ConfigError(
        f'Sweep.space: {name!r} names no parameter; write it as in gin, such '
        "as 'Adam.learning_rate', or a macro"
      )
    if name.rpartition('tftrain.')[2] == _REFUSED:
      raise errors.ConfigError(
        f'Sweep.space: {name} is no hyperparameter to choose a best value of; '
        'give Sweep.seeds = [0, 1, 2] to repeat each trial'
      )
  if isinstance(value, str):
    if isinstance(key, tuple):
      raise errors.ConfigError(
        f'Sweep.space[{key!r}]: what is zipped has choices, not a range'
      )
    return Dimension(names, range=_distribution(key, value))
  if not isinstance(value, list) or not value:
    raise errors.ConfigError(
      f'Sweep.space[{key!r}] = {errors.brief(repr(value))}: give a list of '
      "choices, or a range such as 'log_uniform(1e-5, 1e-2)'"
    )
  choices = [c if isinstance(key, tuple) else (c,) for c in value]
  for choice in choices:
    if not isinstance(choice, tuple | list) or len(choice) != len(names):
      raise errors.ConfigError(
        f'Sweep.space[{key!r}]: {choice!r} is not {len(names)} values in '
        'brackets'
      )
  return Dimension(names, tuple(tuple(choice) for choice in choices))


def _distribution(key: str, text: str) -> Distribution:
  found = _CALL.fullmatch(text.strip())
  if not found or found[1] not in _KINDS:
    raise errors.ConfigError(
      f'Sweep.space[{key!r}] = {text!r} is no range; write '
      f'{", ".join(f"{kind}(low, high)" for kind in _KINDS)}, or a list of '
      'choices'
    )
  try:
    low, high = float(found[2]), float(found[3])
  except ValueError:
    low, high = math.nan, math.nan
  made = Distribution(found[1], low, high)
  sound = math.isfinite(low) and math.isfinite(high) and low < high
  sound = sound and (low > 0 or not made.is_log)
  if not sound or (made.is_int and (low % 1 or high % 1)):
    kinds = 'whole numbers' if made.is_int else 'numbers'
    above = ' above 0' if made.is_log else ''
    raise errors.ConfigError(
      f'Sweep.space[{key!r}] = {text!r}: give two {kinds}{above}, the lower '
      'one first'
    )
  return made


class Literal(str):
  """The gin text of a value; its repr has no quotes."""

  def __repr__(self) -> str:
    return str(self)


def facts(space: Space) -> list[list[dict[str, Any]]]:
  """Returns a space as JSON data, which `from_facts` reads.

  Values become gin texts.
  """
  return [
    [
      {
        'names': list(dimension.names),
        'choices': [[repr(v) for v in c] for c in dimension.choices],
        'range': dimension.range and dataclasses.asdict(dimension.range),
      }
      for dimension in branch
    ]
    for branch in space
  ]


def from_facts(given: Any) -> Space:
  """Returns a space from `facts`; its values are Literals."""
  return tuple(
    tuple(
      Dimension(
        tuple(d['names']),
        tuple(tuple(map(Literal, c)) for c in d['choices']),
        Distribution(**d['range']) if d['range'] else None,
      )
      for d in branch
    )
    for branch in given
  )


def grid(space: Space) -> list[Assignment]:
  """Returns all combinations, branch by branch, the last dimension fastest.

  Raises:
    ConfigError: If the space has a range, whose values cannot be enumerated.
  """
  found = []
  for branch in space:
    for dimension in branch:
      if dimension.range:
        raise errors.ConfigError(
          f'Sweep.space[{dimension.names[0]!r}] is a range, and a grid takes '
          "choices; set Sweep.search = 'random' and Sweep.num_trials"
        )
    for parts in itertools.product(*(d.ends() for d in branch)):
      found.append(_merged(parts))
  return found


def sample(space: Space, count: int, seed: int) -> list[Assignment]:
  """Draws `count` different assignments, the same ones for the same seed.

  Raises:
    ConfigError: If the space has too few different assignments.
  """
  generator = random.Random(f'tftrain sweep {seed}')
  found: list[Assignment] = []
  known: set[str] = set()
  tries = 0
  while len(found) < count:
    branch = generator.choice(space)
    drawn = _merged([dimension.draw(generator) for dimension in branch])
    text = '\n'.join(bindings(drawn))
    if text not in known:
      known.add(text)
      found.append(drawn)
      tries = 0
    tries += 1
    if tries > _TRIES:
      raise errors.ConfigError(
        f'Sweep.num_trials = {count}, but the space has only about '
        f'{len(found)} different trials; ask for fewer, or take '
        "Sweep.search = 'grid'"
      )
  return found


def probes(space: Space) -> Iterator[Assignment]:
  """Yields a few assignments that cover each choice and each end of a range."""
  for branch in space:
    first = _merged([dimension.ends()[0] for dimension in branch])
    yield first
    for dimension in branch:
      for other in dimension.ends()[1:]:
        yield {**first, **other}


def bindings(assignment: Assignment) -> list[str]:
  """Returns an assignment as lines of gin."""
  return [f'{name} = {value!r}' for name, value in assignment.items()]


def _merged(parts: Sequence[Assignment]) -> Assignment:
  return {name: value for part in parts for name, value in part.items()}

"""Object tracking: finds and names a Task's variables, optimizers and metrics.

Names are attribute paths, so they are the same in every process. Keras numbers
its layers per process (`dense_7`); here they are renumbered per model.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import keras
import tensorflow as tf


@dataclasses.dataclass
class Owned:
  """The tracked objects of a Task by name, in order of attribute assignment."""

  variables: dict[str, Any] = dataclasses.field(default_factory=dict)
  layers: dict[str, Any] = dataclasses.field(default_factory=dict)
  sublayers: dict[str, Any] = dataclasses.field(default_factory=dict)
  seeds: list[Any] = dataclasses.field(default_factory=list)
  optimizers: dict[str, Any] = dataclasses.field(default_factory=dict)
  metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
  _seen: set[int] = dataclasses.field(default_factory=set)
  _parts: set[int] = dataclasses.field(default_factory=set)

  @property
  def trainable(self) -> dict[str, Any]:
    return {k: v for k, v in self.variables.items() if v.trainable}

  @property
  def saved(self) -> dict[str, Any]:
    """The variables, and the accumulators of the Keras metrics."""
    saved = dict(self.variables)
    for name, metric in self.metrics.items():
      for index, variable in enumerate(metric.variables):
        saved[f'{name}/{index}_{variable.name}'] = variable
    return saved

  def visit(self, name: str, value: Any) -> None:
    if id(value) in self._seen:
      return
    if isinstance(value, keras.Variable | tf.Variable):
      self._add(name, value)
    elif isinstance(value, keras.Optimizer):
      self._remember(value)
      self.optimizers[name] = value
    elif isinstance(value, keras.Metric):
      self._remember(value)
      self.metrics[_unique(name, self.metrics)] = value
    elif isinstance(value, keras.Layer):
      self._visit_layer(name, value)
    elif isinstance(value, keras.random.SeedGenerator):
      self._remember(value)
      self._add(name, value.state)
      self._add_seeds([value])
    elif isinstance(value, tf.random.Generator):
      self._add(name, value.state)
    elif isinstance(value, tf.Module):
      self._remember(value)
      for attribute, child in vars(value).items():
        if not attribute.startswith('_self_'):  # TensorFlow's bookkeeping
          self.visit(f'{name}/{attribute}', child)
    elif isinstance(value, Mapping):
      for key, child in value.items():
        self.visit(f'{name}/{key}', child)
    elif isinstance(value, list | tuple):
      for index, child in enumerate(value):
        self.visit(f'{name}/{index}', child)

  def _visit_layer(self, name: str, layer: Any) -> None:
    self._remember(layer)
    self.layers[name] = layer
    parts = layer._flatten_layers()
    stable = _Paths(parts)
    for variable in layer.variables:
      self._add(f'{name}/{stable(variable.path)}', variable)
    for part in parts:
      path = stable(part.path or part.name)
      if id(part) not in self._parts:
        self.sublayers[_unique(f'{name}/{path}', self.sublayers)] = part
        self._parts.add(id(part))
      self._remember(part)
      self._add_seeds(part._seed_generators)
      for index, metric in enumerate(part._metrics):
        self.visit(f'{name}/{path}/{metric.name or index}', metric)
      for attribute, child in vars(part).items():
        if not attribute.startswith('_'):  # Keras does not track these
          self._visit_hidden(f'{name}/{attribute}', child)

  def _visit_hidden(self, name: str, child: Any) -> None:
    """Visits tf.Modules and tf.Variables inside a Keras layer."""
    if isinstance(child, tf.Module | tf.Variable):
      self.visit(name, child)
    elif isinstance(child, Mapping):
      for key, value in child.items():
        self._visit_hidden(f'{name}/{key}', value)
    elif isinstance(child, list | tuple):
      for index, value in enumerate(child):
        self._visit_hidden(f'{name}/{index}', value)

  def _add_seeds(self, generators: Sequence[Any]) -> None:
    known = {id(generator) for generator in self.seeds}
    self.seeds += [g for g in generators if id(g) not in known]

  def _add(self, name: str, variable: Any) -> None:
    if id(variable) in self._seen:
      return
    self._remember(variable)
    self.variables[_unique(name, self.variables)] = variable

  def _remember(self, value: Any) -> None:
    self._seen.add(id(value))


def _unique(name: str, taken: Mapping[str, Any]) -> str:
  unique, count = name, 1
  while unique in taken:
    unique, count = f'{name}#{count}', count + 1
  return unique


def owned_by(task: Any) -> Owned:
  """Tracks the attributes of a Task, except those that start with `_`."""
  owned = Owned()
  for name, value in vars(task).items():
    if not name.startswith('_'):
      owned.visit(name, value)
  return owned


def optimizer_slots(
  optimizer: Any, references: Sequence[tuple[str, Any]]
) -> Iterator[tuple[str, str, Any]]:
  """Yields (slot, name of the reference variable, variable) of an optimizer.

  Args:
    optimizer: A built Keras optimizer.
    references: (name, variable) of each variable that the optimizer was built
      with, in that order.
  """
  plain = {
    id(optimizer.iterations),
    id(getattr(optimizer, '_learning_rate', 0)),
  }
  waiting: dict[tuple[str, str], list[str]] = {}
  mangled: dict[str, list[str]] = {}
  for name, variable in references:
    mangled.setdefault(_mangle(variable), []).append(name)
  others = 0
  for variable in optimizer.variables:
    if id(variable) in plain:
      continue
    prefixes = [m for m in mangled if variable.name.startswith(f'{m}_')]
    if not prefixes:
      plain_name = re.sub(r'_\d+$', '', variable.name)
      yield 'state', f'{others:03d}_{plain_name}', variable
      others += 1
      continue
    prefix = max(prefixes, key=len)
    slot = variable.name[len(prefix) + 1 :]
    names = waiting.setdefault((prefix, slot), list(mangled[prefix]))
    yield slot, names.pop(0), variable


def _mangle(variable: Any) -> str:
  """Returns the variable's name in the names of a Keras optimizer's slots."""
  if hasattr(variable, 'path'):
    return str(variable.path).replace('/', '_')
  return str(variable.name).replace('/', '_').replace(':', '_')


class _Paths:
  """Renumbers the automatic names in the paths within a layer.

  Keras counts these names per process.
  """

  def __init__(self, parts: Sequence[Any]):
    self._automatic = {_snake(type(part).__name__) for part in parts}
    self._automatic |= {'seed_generator', 'variable'}
    self._renamed: dict[str, dict[str, str]] = {}

  def __call__(self, path: str) -> str:
    parent = ''
    for segment in path.split('/'):
      siblings = self._renamed.setdefault(parent, {})
      if segment not in siblings:
        base = re.sub(r'_\d+$', '', segment)
        if base in self._automatic:
          count = sum(re.sub(r'_\d+$', '', s) == base for s in siblings)
          siblings[segment] = f'{base}_{count}' if count else base
        else:
          siblings[segment] = segment
      parent = f'{parent}/{siblings[segment]}' if parent else siblings[segment]
    return parent


def _snake(name: str) -> str:
  name = re.sub(r'\W+', '', name)
  name = re.sub('(.)([A-Z][a-z]+)', r'\1_\2', name)
  return re.sub('([a-z])([A-Z])', r'\1_\2', name).lower()

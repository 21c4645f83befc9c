"""Description of a configuration: a tree of all values and their sources."""

from collections.abc import Iterator
from collections.abc import Mapping
import inspect
import json
from typing import Any

from tftrain import errors
from tftrain.config import _resolver
from tftrain.config import gin_files as gin_files_lib
from tftrain.config import gin_parser
from tftrain.experiment import experiment as experiment_lib
from tftrain.platform import redaction
from tftrain.report import interval


class _Bare(str):
  """A text that is shown without quotes."""

  __slots__ = ()

  def __repr__(self) -> str:
    return str(self)


_CALLER = 'caller'
"""The source of a parameter without binding and default."""


def tree(recipe: _resolver.Recipe) -> dict[str, Any]:
  """Returns the Experiment and all that it references, as JSON data.

  A node has `name`, `scope` and `parameters`; a parameter has `value`, `source`
  (`configs/digits.gin:25`, a flag, `default` or `caller`), `macro` and `bound`
  if a macro gave the value, and `references`, which are nodes. A node that
  occurred before has `shown` instead of parameters. The root may have nodes
  `called_from_python`.
  """
  shown: set[_resolver.Place] = set()
  root = _node(recipe, _resolver.EXPERIMENT, '', shown)
  others = [
    _node(recipe, selector, scope, shown)
    for selector, scope in recipe.reached
    if (selector, scope) not in shown
  ]
  if others:
    root['called_from_python'] = others
  return root


def _node(
  recipe: _resolver.Recipe,
  selector: str,
  scope: str,
  shown: set[_resolver.Place],
) -> dict[str, Any]:
  node: dict[str, Any] = {'name': _resolver.short(selector), 'scope': scope}
  if (selector, scope) in shown:
    return {**node, 'shown': True}
  shown.add((selector, scope))
  bound = recipe.bindings(selector, scope)
  takes = _resolver.parameters_of(_resolver.wrapped(selector))
  node['parameters'] = {
    name: _bound(recipe, bound[name], name, scope, shown)
    if name in bound
    else _unbound(name, takes[name])
    for name in dict.fromkeys([*takes, *bound])
    if name != '**'
  }
  return node


def _bound(
  recipe: _resolver.Recipe,
  statement: gin_parser.Statement,
  name: str,
  scope: str,
  shown: set[_resolver.Place],
) -> dict[str, Any]:
  value, source = recipe.source(statement)
  hide = redaction.is_secret(name)
  found: dict[str, Any] = {
    'value': redaction.REDACTED
    if hide
    else _as_json_data(redaction.redacted(value)),
    'source': source.where,
  }
  if source is not statement:
    found['macro'] = source.macro
    found['bound'] = statement.where
  nodes = [
    _node(recipe, configurable.selector, inner, shown)
    for _, configurable, inner in recipe.references(statement, scope)
  ]
  if nodes:
    found['references'] = nodes
  return found


def _unbound(name: str, takes: _resolver.Parameter) -> dict[str, Any]:
  if takes.default is _resolver.NONE:
    return {'value': None, 'source': _CALLER}
  hide = redaction.is_secret(name)
  value = redaction.redacted(takes.default, force=hide)
  return {'value': _as_json_data(value), 'source': 'default'}


def _as_json_data(value: Any) -> Any:
  """Returns a value as JSON data; other types become text."""
  if isinstance(value, dict):
    return {str(key): _as_json_data(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_as_json_data(item) for item in value]
  if value is None or isinstance(value, bool | int | str):
    return value
  if isinstance(value, float):
    return value if abs(value) < float('inf') else _Bare(value)
  if inspect.isclass(value) or inspect.isroutine(value):
    return _Bare(value.__name__)
  if isinstance(value, gin_files_lib.Reference):
    return _Bare(value)
  return _Bare(f'{type(value).__name__}()')


def text(node: Mapping[str, Any]) -> str:
  """Formats the tree for people, with a line for each parameter."""
  rows = list(_tree_rows(node, 0))
  width = min(max(len(left) for left, _ in rows), 56)
  return '\n'.join(f'{left:<{width}}  {right}'.rstrip() for left, right in rows)


def _tree_rows(
  node: Mapping[str, Any], depth: int
) -> Iterator[tuple[str, str]]:
  indent = '  ' * depth
  if not depth:
    yield node['name'], ''
  for name, found in node.get('parameters', {}).items():
    value = errors.brief(repr(found['value']), 60)
    source = found['source']
    if 'macro' in found:
      source = f'{source} (%{found["macro"]}, {found["bound"]})'
    yield f'{indent}  {name} = {value}', source
    many = len(found.get('references', [])) > 1
    for inner in found.get('references', []):
      more = 1
      if many or inner.get('shown'):
        scope = f'{inner["scope"]}/' if inner['scope'] else ''
        again = 'shown above' if inner.get('shown') else ''
        yield f'{indent}    @{scope}{inner["name"]}', again
        more = 2
      yield from _tree_rows(inner, depth + more)
  for inner in node.get('called_from_python', []):
    yield inner['name'], 'called from Python'
    yield from _tree_rows(inner, 1)


def steps(experiment: experiment_lib.Experiment) -> int | None:
  """Returns the last step of a run; None if its data have no known length."""
  if experiment.steps is not None:
    return experiment.steps
  _, data = next(experiment.all_data())
  if data.steps_per_epoch is None:
    return None
  return interval.last_step(None, experiment.epochs, data.steps_per_epoch)


def as_json(
  recipe: _resolver.Recipe, experiment: experiment_lib.Experiment
) -> str:
  """Returns the tree and the steps as one line of JSON."""
  return json.dumps({'recipe': tree(recipe), 'steps': steps(experiment)})

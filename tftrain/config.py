"""gin at the edge: registration, parsing, checking, saving.

The only file that imports gin. The core takes plain arguments.
"""

import importlib
import importlib.util  # gin uses it without importing it  # noqa: F401
import inspect
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import pathlib
import sys
import tokenize
import types
import typing
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser
import keras

from tftrain import actions
from tftrain import errors
from tftrain import experiments
from tftrain import inputs
from tftrain import losses
from tftrain import tasks

_PUBLIC = (
  actions.EarlyStopping,
  actions.Every,
  experiments.Experiment,
  inputs.Arrays,
  inputs.Batches,
  tasks.SupervisedTask,
)

# What may change between the lives of a run: how long, how often, on what.
_FREE = frozenset(
  f'Experiment.{name}'
  for name in (
    'steps epochs steps_per_loop log_every eval_every checkpoint_every keep '
    'export strategy actions early_stop eval_data'
  ).split()
)


def load(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> experiments.Experiment:
  """Parses and checks a configuration and returns its Experiment.

  Raises:
    ConfigError: A file is missing, a name or parameter unknown, a value of the
      wrong type: one line with file, line and what may have been meant.
  """
  register()
  roots = _roots(search_paths)
  for root in roots:
    gin.add_config_file_search_path(str(root))
    if str(root) not in sys.path:
      sys.path.append(str(root))
  paths = [_find(name, roots, where='--gin_file') for name in gin_files]
  statements: list[_Statement] = []
  for path in paths:
    statements += _read(path.read_text('utf-8'), str(path), roots)
  for binding in bindings:
    statements += _read(binding, '--gin_bindings', roots)
  _check_statements(statements)
  try:
    gin.parse_config_files_and_bindings([str(p) for p in paths], list(bindings))
    recipe = gin.get_configurable(experiments.Experiment)()
  except errors.Error:
    raise
  except Exception as error:
    raise errors.ConfigError(_join_lines(error)) from error
  assert isinstance(recipe, experiments.Experiment)
  return recipe


def register() -> None:
  """Makes the public classes and Keras's own known to gin; may be repeated."""
  if gin_config._REGISTRY.matching_selectors('tftrain.Experiment'):
    return
  for cls in _PUBLIC:
    gin.external_configurable(cls, module='tftrain')
  gin.external_configurable(losses.Loss, module='tftrain')
  groups = {
    'keras.optimizers': (keras.optimizers, keras.Optimizer),
    'keras.optimizers.schedules': (
      keras.optimizers.schedules,
      keras.optimizers.schedules.LearningRateSchedule,
    ),
    'keras.losses': (keras.losses, keras.losses.Loss),
    'keras.metrics': (keras.metrics, keras.Metric),
  }
  for module, (namespace, base) in groups.items():
    for name, value in sorted(vars(namespace).items()):
      is_class = inspect.isclass(value) and issubclass(value, base)
      if is_class or (inspect.isfunction(value) and not name.startswith('_')):
        gin.external_configurable(value, name=name, module=module)


def check_used() -> None:
  """Refuses bindings that nothing has read; call when all parts are built.

  Raises:
    ConfigError: A binding had no effect.
  """
  used = {
    (selector, parameter)
    for (_, selector), parameters in gin_config._OPERATIVE_CONFIG.items()
    for parameter in parameters
  }
  for (scope, selector), parameters in gin_config._CONFIG.items():
    if selector == 'gin.macro':
      continue
    for parameter in parameters:
      if (selector, parameter) not in used:
        name = f'{scope}/{selector}' if scope else selector
        raise errors.ConfigError(
          f'the binding {name}.{parameter} has no effect: nothing uses '
          f'{selector}; reference it with @{selector.rpartition(".")[2]} or '
          'remove the binding'
        )


def texts() -> dict[str, str]:
  """File name -> text: what was asked for, and what it came to."""
  return {
    'config.gin': gin.config_str(),
    'operative_config.gin': gin.operative_config_str(),
  }


def check_same(model_dir: pathlib.Path) -> None:
  """Refuses a model_dir that was trained with another configuration.

  Raises:
    RunDirectoryError: It differs in more than how long, how often and where.
  """
  path = model_dir / 'config.gin'
  if not path.exists():
    return
  old = _values(path.read_text(encoding='utf-8'))
  new = _values(gin.config_str())
  different = sorted(
    name
    for name in old.keys() | new.keys()
    if old.get(name) != new.get(name) and name not in _FREE
  )
  # A macro may feed a free parameter; what it feeds is compared by value.
  if different:
    name = different[0]
    more = f' and {len(different) - 1} more' if len(different) > 1 else ''
    raise errors.RunDirectoryError(
      f'{model_dir} holds a run with another configuration ({name}: '
      f'{old.get(name, "not set")} -> {new.get(name, "not set")}{more}); '
      'restore the old value or choose a new model_dir'
    )


# Reading gin files without running them.


@dataclasses.dataclass(frozen=True)
class _Reference:
  name: str
  is_macro: bool = False
  called: bool = False

  def __repr__(self) -> str:
    mark = '%' if self.is_macro else '@'
    return f'{mark}{self.name}{"()" if self.called else ""}'


class _Delegate(config_parser.ParserDelegate):  # type: ignore[misc]
  def configurable_reference(self, name: str, evaluate: bool) -> _Reference:
    return _Reference(name, called=evaluate)

  def macro(self, name: str) -> _Reference:
    return _Reference(name, is_macro=True)


@dataclasses.dataclass(frozen=True)
class _Statement:
  """One binding and where it stands."""

  where: str
  selector: str
  parameter: str
  value: Any

  @property
  def is_macro(self) -> bool:
    return not self.parameter or self.selector == 'gin.macro'


def _read(
  text: str, origin: str, roots: Sequence[pathlib.Path]
) -> Iterator[_Statement]:
  """The bindings of a gin text and its includes; imports what it imports."""
  where = origin
  try:
    for statement in config_parser.ConfigParser(text, _Delegate()):
      if origin != '--gin_bindings':
        where = f'{origin}:{statement.location.line_num}'
      if isinstance(statement, config_parser.ImportStatement):
        _import(statement, where)
      elif isinstance(statement, config_parser.IncludeStatement):
        path = _find(statement.filename, roots, where)
        yield from _read(path.read_text('utf-8'), str(path), roots)
      elif isinstance(statement, config_parser.BindingStatement):
        yield _Statement(
          where, statement.selector, statement.arg_name, statement.value
        )
  except errors.Error:
    raise
  except (SyntaxError, ValueError, tokenize.TokenError, RecursionError) as error:
    line = getattr(error, 'lineno', None)
    if line and origin != '--gin_bindings':
      where = f'{origin}:{line}'
    content = (getattr(error, 'text', None) or '').strip()
    raise errors.ConfigError(
      f'{where}: not gin: {content or errors.one_line(error)}; values are '
      "Python literals (True, 0.1, 'text'), @name, @name() or %MACRO"
    ) from error


def _import(statement: Any, where: str) -> None:
  if statement.module.startswith('__gin__'):
    raise errors.ConfigError(
      f'{where}: dynamic registration is not supported; import the module and '
      'decorate what it offers with @gin.register'
    )
  try:
    try:
      importlib.import_module(statement.module)
    except ModuleNotFoundError as error:
      parent, _, name = statement.module.rpartition('.')
      if not (statement.is_from and error.name == statement.module):
        raise
      getattr(importlib.import_module(parent), name)
  except ModuleNotFoundError as error:
    raise errors.ConfigError(
      f'{where}: no module named {error.name!r} (for {statement.format()!r}); '
      'install it, or run from the directory that holds it'
    ) from error


def _find(
  name: str, roots: Sequence[pathlib.Path], where: str
) -> pathlib.Path:
  tried = [root / name for root in roots]
  for path in tried:
    if path.is_file():
      return path.resolve()
  nearby = [p for root in roots for p in (*root.glob('*.gin'), *root.glob('*/*.gin'))]
  by_name = {path.name: path for path in nearby}
  close = difflib.get_close_matches(pathlib.Path(name).name, by_name, n=1)
  hint = f'; did you mean {by_name[close[0]]}?' if close else ''
  searched = ', '.join(dict.fromkeys(str(root) for root in roots))
  raise errors.ConfigError(f'{where}: no file {name!r} in {searched}{hint}')


def _roots(search_paths: Sequence[str]) -> list[pathlib.Path]:
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


# Checking what was read.


def _check_statements(statements: Sequence[_Statement]) -> None:
  macros = {
    s.selector.rpartition('/')[2]: s for s in statements if s.is_macro
  }
  read: set[str] = set()
  for statement in statements:
    for reference in _references(statement.value):
      if reference.is_macro:
        read.add(reference.name)
        _check_macro(statement, reference, macros)
      else:
        _configurable(reference.name.rpartition('/')[2], statement.where)
    if not statement.is_macro:
      _check_binding(statement, macros)
  _check_required(statements)
  for name, statement in macros.items():
    if name not in read:
      raise errors.ConfigError(
        f'{statement.where}: nothing reads the macro {name}; use it as '
        f'%{name}, or write Name.{name} to bind a parameter'
      )


def _check_required(statements: Sequence[_Statement]) -> None:
  bound = {
    s.parameter
    for s in statements
    if s.selector.rpartition('.')[2] == 'Experiment'
  }
  for field in dataclasses.fields(experiments.Experiment):
    if field.default is dataclasses.MISSING and field.name not in bound:
      raise errors.ConfigError(
        f'Experiment.{field.name} is required; bind it in a gin file or with '
        f"--gin_bindings='Experiment.{field.name} = @...'"
      )


def _check_macro(
  statement: _Statement, reference: _Reference, macros: Mapping[str, Any]
) -> None:
  if reference.name not in macros and not reference.name.startswith('gin.'):
    raise errors.ConfigError(
      f'{statement.where}: no macro is called %{reference.name}'
      + _suggest(reference.name, macros)
    )


def _check_binding(
  statement: _Statement, macros: Mapping[str, _Statement]
) -> None:
  function = _configurable(statement.selector, statement.where)
  parameters = _parameters(function)
  name = statement.parameter
  if name not in parameters:
    if '**' in parameters:
      return
    raise errors.ConfigError(
      f'{statement.where}: {statement.selector} has no parameter {name!r}'
      + _suggest(name, parameters)
    )
  value = statement.value
  if isinstance(value, _Reference) and value.name in macros:
    value = macros[value.name].value
  expected = parameters[name]
  if not isinstance(value, _Reference) and not _fits(value, expected):
    wanted = ' or '.join(_NAMES.get(k, k.__name__) for k in expected)
    raise errors.ConfigError(
      f'{statement.where}: {statement.selector}.{name} = {value!r} is '
      f'{type(value).__name__}, expected {wanted}'
    )


def _configurable(selector: str, where: str) -> Any:
  registry = gin_config._REGISTRY
  matches = registry.matching_selectors(selector)
  if len(matches) == 1:
    return registry[matches[0]].wrapped
  if matches:
    raise errors.ConfigError(
      f'{where}: {selector!r} may be any of {", ".join(sorted(matches))}; write '
      'more of its name'
    )
  short = {name.rpartition('.')[2] for name, _ in registry.items()}
  raise errors.ConfigError(
    f'{where}: no configurable is called {selector!r}'
    + (_suggest(selector, short) or '; is its module imported?')
  )


_Kinds = tuple[type, ...]
_CHECKED = (int, float, bool, str, type(None))
_NAMES = {type(None): 'None'}


def _parameters(function: Any) -> dict[str, _Kinds]:
  """Parameter -> types it takes, () for any; `**` stands for any name."""
  found: dict[str, _Kinds] = {}
  inits = [function]
  if inspect.isclass(function):
    inits = [
      vars(c)['__init__'] for c in function.__mro__ if '__init__' in vars(c)
    ]
  for init in inits:
    try:
      signature = inspect.signature(init)
      hints = typing.get_type_hints(init)
    except (TypeError, ValueError, NameError):
      hints = {}
    open_ended = False
    for parameter in signature.parameters.values():
      if parameter.kind is parameter.VAR_KEYWORD:
        open_ended = True
      elif parameter.kind is not parameter.VAR_POSITIONAL:
        kinds = _kinds(hints.get(parameter.name), parameter.default)
        found.setdefault(parameter.name, kinds)
    if not open_ended:
      return found  # what a base class takes, this one does not pass on
  return {**found, '**': ()} if not inspect.isclass(function) else found


def _kinds(hint: Any, default: Any) -> _Kinds:
  if hint is not None:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    return tuple(options) if all(o in _CHECKED for o in options) else ()
  if type(default) in (bool, int, float):
    return (type(default),)
  return ()


def _fits(value: Any, kinds: _Kinds) -> bool:
  if not kinds:
    return True
  if type(value) in kinds:
    return True
  return isinstance(value, int) and not isinstance(value, bool) and float in kinds


def _references(value: Any) -> Iterator[_Reference]:
  if isinstance(value, _Reference):
    yield value
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from _references(key)
      yield from _references(item)
  elif isinstance(value, list | tuple):
    for item in value:
      yield from _references(item)


def _suggest(name: str, known: Any) -> str:
  close = difflib.get_close_matches(name, [k for k in known if k != '**'], n=1)
  return f'; did you mean {close[0]!r}?' if close else ''


def _values(text: str) -> dict[str, str]:
  """Binding -> value as text, macros resolved."""
  statements = [
    s
    for s in config_parser.ConfigParser(text, _Delegate())
    if isinstance(s, config_parser.BindingStatement)
  ]
  macros = {s.selector: s.value for s in statements if not s.arg_name}
  values = {}
  for s in statements:
    if s.arg_name:
      value = s.value
      if isinstance(value, _Reference) and value.is_macro:
        value = macros.get(value.name, value)
      scope = f'{s.scope}/' if s.scope else ''
      selector = s.selector.removeprefix('tftrain.')
      values[f'{scope}{selector}.{s.arg_name}'] = repr(value)
  return values


def _join_lines(error: BaseException) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return '; '.join(lines) or type(error).__name__

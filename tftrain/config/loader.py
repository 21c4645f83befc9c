"""gin at the edge: registration, parsing, saving.

This layer alone imports gin. The core takes plain arguments.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
import re
import sys
from typing import Any

import gin
from gin import config as gin_config

from tftrain import errors
from tftrain.actions import profiler
from tftrain.config import _describe
from tftrain.config import _resolver
from tftrain.config import _trust
from tftrain.config import gin_files as gin_files_lib
from tftrain.config import gin_parser
from tftrain.config import registry
from tftrain.config import validator
from tftrain.experiment import experiment as experiment_lib
from tftrain.platform import redaction
from tftrain.report import report as report_lib

# What may change between the lives of a run: how long, how often, on what.
_FREE = frozenset(
  f'Experiment.{name}'
  for name in (
    'steps epochs steps_per_loop log_every eval_every checkpoint_every keep '
    'keep_every best durable max_failed_saves max_time export strategy actions '
    'early_stop eval_data max_traces'
  ).split()
)


_Bound = Mapping[tuple[str, str], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A configuration that was read, checked and taken.

  Attributes:
    experiment: What it makes.
    recipe: The bindings that hold, and where each came from.
  """

  experiment: experiment_lib.Experiment
  recipe: _resolver.Recipe

  def described(self, form: str = 'text') -> str:
    """Each value and where it came from, as `text` or one line of `json`."""
    if form == 'json':
      return _describe.as_json(self.recipe, self.experiment)
    return _describe.text(_describe.tree(self.recipe))


def load(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> experiment_lib.Experiment:
  """The Experiment of a configuration: see `load_all`."""
  return load_all(gin_files, bindings, search_paths).experiment


def load_all(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  *,
  origins: Mapping[str, str] | None = None,
  trust: str = 'program',
) -> Loaded:
  """Parses and checks a configuration.

  Args:
    gin_files: Their names.
    bindings: Further texts, which come last.
    search_paths: Where files are looked for, after the working directory.
    origins: Binding -> the flag it was given with, if not --gin_bindings.
    trust: `program`, or `data`: then it may import nothing.

  Raises:
    ConfigError: A file is missing, a name or parameter unknown, a value of the
      wrong type: one line with file, line and what may have been meant.
  """
  registry.register()
  roots = gin_files_lib.roots(search_paths)
  texts = [gin_files_lib.of_file(name, roots) for name in gin_files]
  texts += [_of_flag(binding, origins or {}) for binding in bindings]
  if trust == 'data':
    for text in texts:
      _trust.check(text, roots)
  else:
    sys.path += [str(root) for root in roots if str(root) not in sys.path]
  found = [s for text in texts for s in gin_parser.read(text, roots)]
  recipe = validator.check(found)
  try:
    for text in texts:
      gin_parser.bind(text, roots)
    gin.finalize()
    experiment = gin.get_configurable(experiment_lib.Experiment)()
  except errors.Error:
    raise
  except Exception as error:
    raise errors.ConfigError(_join_lines(error)) from error
  assert isinstance(experiment, experiment_lib.Experiment)
  return Loaded(experiment, recipe)


def _of_flag(binding: str, origins: Mapping[str, str]) -> gin_files_lib.Text:
  origin = origins.get(binding)
  if origin is None:
    return gin_files_lib.Text(binding, gin_files_lib.BINDINGS)
  return gin_files_lib.Text(
    binding, origin, value_of=binding.partition('=')[2].strip()
  )


def profiled(
  experiment: experiment_lib.Experiment, steps: str
) -> experiment_lib.Experiment:
  """The same with a Profile of the steps `a:b`, which is no part of its run."""
  return watched(experiment, [profiler.parse(steps)])


def watched(
  experiment: experiment_lib.Experiment, actions: Sequence[report_lib.Action]
) -> experiment_lib.Experiment:
  """The same with further Actions, which are no part of its recipe."""
  return dataclasses.replace(
    experiment, actions=[*experiment.actions, *actions]
  )


def check_used() -> None:
  """Refuses bindings that nothing has read; call when all parts are built.

  Raises:
    ConfigError: A binding had no effect.
  """
  used = {
    (scope, selector, parameter)
    for (scope, selector), parameters in gin_config._OPERATIVE_CONFIG.items()
    for parameter in parameters
  }
  for (scope, selector), parameters in gin_config._CONFIG.items():
    if selector == 'gin.macro':
      continue
    name = f'{scope}/{selector}' if scope else selector
    for parameter in parameters:
      inside = [s for s, *rest in used if rest == [selector, parameter]]
      if any(f'{s}/'.startswith(f'{scope}/') or not scope for s in inside):
        continue
      what = f'in the scope {scope!r} ' if inside else ''
      raise errors.ConfigError(
        f'the binding {name}.{parameter} has no effect: nothing uses '
        f'{selector} {what}'.rstrip()
        + f'; reference it with @{name.replace(selector, _last(selector))} or '
        'remove the binding'
      )


def texts() -> dict[str, str]:
  """File name -> text: what was asked for, and what it came to."""
  operative = gin_config._OPERATIVE_CONFIG
  with gin_config._OPERATIVE_CONFIG_LOCK:
    return {
      'config.gin': _text(gin_config._CONFIG),
      'operative_config.gin': _text(operative),
    }


def _text(bound: _Bound) -> str:
  """gin's text of some bindings, without the texts of secrets.

  It stays a configuration; a run that repeats it asks for them anew.
  """
  hidden = {
    reference.scoped_selector.removesuffix('/gin.macro')
    for parameters in bound.values()
    for name, value in parameters.items()
    if redaction.is_secret(name)
    for reference in gin_config.iterate_references({name: value})
  }
  shown = {
    (scope, selector): {
      name: redaction.redacted(
        value,
        force=scope in hidden or redaction.is_secret(scope)
        if selector == 'gin.macro'
        else redaction.is_secret(name),
      )
      for name, value in parameters.items()
    }
    for (scope, selector), parameters in bound.items()
  }
  return str(gin_config._config_str(shown))


def check_same(model_dir: pathlib.Path) -> None:
  """Refuses a model_dir that was trained with another configuration.

  Raises:
    RunDirectoryError: It differs in more than how long, how often and where.
  """
  path = model_dir / 'config.gin'
  if not path.exists():
    return
  old = gin_parser.values(gin_files_lib.text_of(path))
  new = gin_parser.values(_text(gin_config._CONFIG))
  meant = _reached(old, free=False) | _reached(new, free=False)
  free = (_reached(old, free=True) | _reached(new, free=True)) - meant
  different = sorted(
    name
    for name in old.keys() | new.keys()
    if old.get(name) != new.get(name)
    and name not in _FREE
    and _selector(name) not in free
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


def _reached(values: Mapping[str, str], *, free: bool) -> set[str]:
  """The configurables that the Experiment's free parameters, or all others,
  lead to."""
  found: set[str] = set()
  waiting = [
    value
    for name, value in values.items()
    if _selector(name) == 'Experiment' and (name in _FREE) == free
  ]
  while waiting:
    for name in _REFERENCE.findall(waiting.pop()):
      if name not in found:
        found.add(name)
        waiting += [v for k, v in values.items() if _selector(k) == name]
  return found


def _selector(name: str) -> str:
  """`Adam` of `train/optimizers.Adam.learning_rate`."""
  return name.rpartition('/')[2].split('.')[-2]


def _last(selector: str) -> str:
  return selector.rpartition('.')[2]


_REFERENCE = re.compile(r'@(?:[\w.]+/)*(?:\w+\.)*(\w+)')


def _join_lines(error: BaseException) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return '; '.join(lines) or type(error).__name__

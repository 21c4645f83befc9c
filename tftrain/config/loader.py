"""Loading of gin configurations: parsing, checking, building and saving.

The training core does not import gin; it takes plain arguments.
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
from tftrain.report import action as action_lib

# Parameters that may change when a run resumes: how long, how often, on what.
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
  """A configuration that was read, checked and applied.

  Attributes:
    experiment: The Experiment that it builds.
    recipe: The bindings in effect, and their sources.
  """

  experiment: experiment_lib.Experiment
  recipe: _resolver.Recipe

  def described(self, form: str = 'text') -> str:
    """Returns all values and sources, as `text` or one line of `json`."""
    if form == 'json':
      return _describe.as_json(self.recipe, self.experiment)
    return _describe.text(_describe.tree(self.recipe))


def load(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
) -> experiment_lib.Experiment:
  """Returns the Experiment of a configuration; see `load_all`."""
  return load_all(gin_files, bindings, search_paths).experiment


def load_all(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  *,
  origins: Mapping[str, str] | None = None,
  trust: str = 'program',
) -> Loaded:
  """Parses, checks and applies a configuration.

  Args:
    gin_files: Names of gin files.
    bindings: Further gin texts, which are applied last.
    search_paths: Directories to search after the working directory.
    origins: Binding -> the flag that gave it, if not --gin_bindings.
    trust: `program`, or `data`, which allows no imports; see `_trust`.

  Raises:
    ConfigError: If a file is missing, a name or parameter is unknown, or a
      value has the wrong type. The message is one line with file, line and a
      suggestion.
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
  """Returns the experiment with a Profiler of the steps `a:b` added."""
  return watched(experiment, [profiler.parse(steps)])


def watched(
  experiment: experiment_lib.Experiment,
  actions: Sequence[action_lib.ActionLike],
) -> experiment_lib.Experiment:
  """Returns the experiment with further Actions, not in its recipe."""
  return dataclasses.replace(
    experiment, actions=[*experiment.actions, *actions]
  )


def check_used() -> None:
  """Rejects bindings that nothing has read; call after all parts are built.

  Raises:
    ConfigError: If a binding has no effect.
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
  """Returns file name -> text of the given and the operative configuration."""
  operative = gin_config._OPERATIVE_CONFIG
  with gin_config._OPERATIVE_CONFIG_LOCK:
    return {
      'config.gin': _gin_text(gin_config._CONFIG),
      'operative_config.gin': _gin_text(operative),
    }


def _gin_text(bound: _Bound) -> str:
  """Returns gin's text of some bindings, with secrets redacted.

  The text is a valid configuration; a run that repeats it must be given the
  secrets again.
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
  """Rejects a model_dir that was trained with another configuration.

  Raises:
    RunDirectoryError: If more differs than the parameters that may change when
      a run resumes.
  """
  path = model_dir / 'config.gin'
  if not path.exists():
    return
  old = gin_parser.values(gin_files_lib.text_of(path))
  new = gin_parser.values(_gin_text(gin_config._CONFIG))
  meant = _reached_configurables(old, free=False) | _reached_configurables(
    new, free=False
  )
  free = (
    _reached_configurables(old, free=True)
    | _reached_configurables(new, free=True)
  ) - meant
  different = sorted(
    name
    for name in old.keys() | new.keys()
    if old.get(name) != new.get(name)
    and name not in _FREE
    and _selector(name) not in free
  )
  # Macros are compared through the parameters they set, some of which are free.
  if different:
    name = different[0]
    more = f' and {len(different) - 1} more' if len(different) > 1 else ''
    raise errors.RunDirectoryError(
      f'{model_dir} holds a run with another configuration ({name}: '
      f'{old.get(name, "not set")} -> {new.get(name, "not set")}{more}); '
      'restore the old value or choose a new model_dir'
    )


def _reached_configurables(
  values: Mapping[str, str], *, free: bool
) -> set[str]:
  """Returns the configurables that the Experiment reaches.

  Args:
    values: Binding -> value as text.
    free: Whether to start from the parameters in _FREE, or from all others.
  """
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
  """Returns `Adam` for `train/optimizers.Adam.learning_rate`."""
  return name.rpartition('/')[2].split('.')[-2]


def _last(selector: str) -> str:
  return selector.rpartition('.')[2]


_REFERENCE = re.compile(r'@(?:[\w.]+/)*(?:\w+\.)*(\w+)')


def _join_lines(error: BaseException) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return '; '.join(lines) or type(error).__name__

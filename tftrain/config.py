"""gin at the edge: registration, parsing, saving.

This file and statements.py are the only ones that import gin. The core takes
plain arguments.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import inspect
import pathlib
import re
import sys

import gin
from gin import config as gin_config
import keras

from tftrain import actions
from tftrain import digests
from tftrain import errors
from tftrain import experiments
from tftrain import exporters
from tftrain import gintexts
from tftrain import histograms
from tftrain import inputs
from tftrain import profiles
from tftrain import reports
from tftrain import retention
from tftrain import rewinds
from tftrain import schedules
from tftrain import sinks
from tftrain import spikes
from tftrain import statements
from tftrain import supervised
from tftrain import updates
from tftrain import warmstarts

_PUBLIC = (
  actions.EarlyStopping,
  actions.Every,
  digests.Digests,
  experiments.Experiment,
  exporters.Export,
  histograms.Histograms,
  inputs.ArrayRecord,
  inputs.Arrays,
  inputs.Batches,
  inputs.Bucketed,
  inputs.Csv,
  inputs.Examples,
  inputs.FirstBatches,
  inputs.Generator,
  inputs.ImageFolder,
  inputs.InMemory,
  inputs.JsonLines,
  inputs.Mapped,
  inputs.Mixture,
  inputs.Npz,
  inputs.Packed,
  inputs.Padded,
  inputs.Parquet,
  inputs.Ragged,
  inputs.RandomAccess,
  inputs.TFRecords,
  inputs.TextFiles,
  inputs.TextLines,
  inputs.Tfds,
  profiles.Profile,
  retention.Best,
  rewinds.Rewind,
  schedules.InverseSqrt,
  schedules.Joined,
  schedules.WarmUp,
  sinks.CsvSink,
  spikes.LossSpike,
  supervised.SupervisedTask,
  updates.Update,
  warmstarts.WarmStart,
)

# What may change between the lives of a run: how long, how often, on what.
_FREE = frozenset(
  f'Experiment.{name}'
  for name in (
    'steps epochs steps_per_loop log_every eval_every checkpoint_every keep '
    'keep_every best durable max_failed_saves max_time export strategy actions '
    'early_stop eval_data max_traces'
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
  roots = gintexts.roots(search_paths)
  sys.path += [str(root) for root in roots if str(root) not in sys.path]
  paths = [gintexts.find(name, roots, '--gin_file') for name in gin_files]
  found: list[statements.Statement] = []
  for path in paths:
    found += statements.read(gintexts.text_of(path), str(path), roots)
  for binding in bindings:
    found += statements.read(binding, '--gin_bindings', roots)
  statements.check(found)
  try:
    for path in paths:
      gin.parse_config(gintexts.flattened(gintexts.text_of(path), roots))
    gin.parse_config(list(bindings))
    gin.finalize()
    recipe = gin.get_configurable(experiments.Experiment)()
  except errors.Error:
    raise
  except Exception as error:
    raise errors.ConfigError(_join_lines(error)) from error
  assert isinstance(recipe, experiments.Experiment)
  return recipe


def profiled(
  experiment: experiments.Experiment, steps: str
) -> experiments.Experiment:
  """The same with a Profile of the steps `a:b`, which is no part of its run."""
  return watched(experiment, [profiles.parse(steps)])


def watched(
  experiment: experiments.Experiment, actions: Sequence[reports.Action]
) -> experiments.Experiment:
  """The same with further Actions, which are no part of its recipe."""
  return dataclasses.replace(
    experiment, actions=[*experiment.actions, *actions]
  )


def forget() -> None:
  """Makes room for another configuration in this process."""
  gin.clear_config()


def register() -> None:
  """Makes the public classes and Keras's own known to gin; may be repeated."""
  if gin_config._REGISTRY.matching_selectors('tftrain.Experiment'):
    return
  for cls in _PUBLIC:
    gin.external_configurable(cls, module='tftrain')
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
  old = statements.values(gintexts.text_of(path))
  new = statements.values(gin.config_str())
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


_REFERENCE = re.compile(r'@(?:[\w.]+/)*(?:\w+\.)*(\w+)')


def _join_lines(error: BaseException) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return '; '.join(lines) or type(error).__name__

"""Warm start: initializes a run with the weights of another."""

from collections.abc import Mapping
import dataclasses
import pathlib
import re
from typing import Any

from absl import logging
import h5py
import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.checkpoint import format
from tftrain.checkpoint import structure_diff
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.step import update_options
from tftrain.task import task as task_lib

_TF_SUFFIX = '/.ATTRIBUTES/VARIABLE_VALUE'
_TF_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'


@dataclasses.dataclass(frozen=True)
class WarmStart:
  """Source of the weights of a new run; a resumed run ignores it.

  >>> WarmStart('/tmp/other', mapping={'^model/trunk': 'model/encoder'})

  The weights of models are loaded, batch statistics included. Optimizers and
  the step begin anew.

  Attributes:
    path: Path of a run's model_dir (for its newest checkpoint), a checkpoint of
      a run, a TensorFlow checkpoint, or a Keras file `*.weights.h5`.
    mapping: Regular expression in the source's names -> replacement, which must
      yield this Task's names, such as `model/sequential/dense/kernel`.
    exclude: Regular expression for names of this Task that keep their initial
      values.
    averages: Whether to load the moving averages (EMA) of a tftrain run, if it
      has them.
    strict: Whether each weight must be found, and each source weight used.

  Raises:
    ConfigError: If a regular expression is invalid.
  """

  path: str
  mapping: Mapping[str, str] = dataclasses.field(default_factory=dict)
  exclude: str | None = None
  averages: bool = False
  strict: bool = True

  def __post_init__(self) -> None:
    for pattern in self.mapping:
      update_options.check_pattern('WarmStart.mapping', pattern)
    update_options.check_pattern('WarmStart.exclude', self.exclude or '')


def load(task: task_lib.Task, start: WarmStart) -> None:
  """Loads the weights that `start` describes into a built Task.

  Raises:
    CheckpointError: If the source is missing, unreadable, or does not fit the
      model; the weights then stay unchanged.
  """
  ours = _weights(task, start)
  before = {name: variable.numpy() for name, variable in ours.items()}
  try:
    values = _read_source(task, start, ours)
    _check_match(start, values, ours)
  except errors.Error:
    _assign_values(ours, before)
    raise
  except format.DAMAGED as error:
    _assign_values(ours, before)
    raise errors.CheckpointError(
      f'init_from: {start.path} cannot be read ({errors.one_line(error)}); '
      'give a model_dir, a checkpoint or a .weights.h5 file'
    ) from error
  _assign_values(ours, {name: values[name] for name in ours if name in values})
  logging.info('%d weights begin as in %s', len(values), start.path)


def _weights(task: task_lib.Task, start: WarmStart) -> dict[str, tf.Variable]:
  """Returns name -> variable of the weights to load."""
  owned = tracking.owned_by(task)
  seeds = {id(generator.state) for generator in owned.seeds}
  return {
    name: variables_lib.raw(variable)
    for name, variable in owned.variables.items()
    if id(variable) not in seeds
    and not (start.exclude and re.search(start.exclude, name))
  }


def _read_source(
  task: task_lib.Task, start: WarmStart, ours: Mapping[str, tf.Variable]
) -> dict[str, np.ndarray]:
  """Returns name in the Task -> value in the source."""
  path = pathlib.Path(start.path)
  if path.suffix == '.h5':
    return _read_keras(task, start, ours)
  run = _checkpoint_of_ours(path)
  if run is not None:
    return _read_ours(run, start, ours)
  prefix = tf.train.latest_checkpoint(start.path) or start.path
  if pathlib.Path(f'{prefix}.index').exists():
    return _read_tensorflow(task, prefix, start, ours)
  advice = 'give a model_dir, a checkpoint or a .weights.h5 file'
  if path.suffix == '.keras':
    advice = 'save_weights() of that model makes a .weights.h5 file; give that'
  raise errors.CheckpointError(
    f'init_from: there is no checkpoint at {start.path}; {advice}'
  )


def _checkpoint_of_ours(path: pathlib.Path) -> pathlib.Path | None:
  if (path / 'manifest.json').exists():
    return path
  directory = path / 'checkpoints' if (path / 'checkpoints').is_dir() else path
  steps = format.committed_steps(directory) if directory.is_dir() else []
  return format.checkpoint_path(directory, steps[-1]) if steps else None


def _read_ours(
  path: pathlib.Path, start: WarmStart, ours: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  manifest, state = format.read_checkpoint(path)
  optimizers = tuple(f'{name}/' for name in manifest['facts']['optimizers'])
  found = {
    name: value
    for name, value in state.items()
    if not name.startswith((*optimizers, 'trainer/'))
    and np.issubdtype(value.dtype, np.inexact)
  }
  if start.averages:
    for optimizer in optimizers:
      prefix = f'{optimizer}ema/'
      averages = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix)
      }
      found.update(averages)
  # Leaves out other members of a Task, such as metrics.
  tops = {name.partition('/')[0] for name in ours}
  mapped = _mapped(found, start)
  return {n: v for n, v in mapped.items() if n.partition('/')[0] in tops}


def _read_tensorflow(
  task: task_lib.Task,
  prefix: str,
  start: WarmStart,
  ours: Mapping[str, tf.Variable],
) -> dict[str, np.ndarray]:
  reader = tf.train.load_checkpoint(prefix)
  names = list(reader.get_variable_to_shape_map())
  if start.mapping or _TF_GRAPH not in names:
    plain = {
      name.removesuffix(_TF_SUFFIX): reader.get_tensor(name)
      for name in names
      if name != _TF_GRAPH
    }
    mapped = _mapped(plain, start)
    # Leaves out slot variables and counters, which are not weights.
    return {name: value for name, value in mapped.items() if name in ours}
  models = tracking.owned_by(task).layers
  try:
    tf.train.Checkpoint(**models).read(prefix).assert_existing_objects_matched()
  except (AssertionError, ValueError, tf.errors.OpError) as error:
    raise _of_another_model(prefix, names, ours, error) from error
  return {name: variable.numpy() for name, variable in ours.items()}


def _read_keras(
  task: task_lib.Task, start: WarmStart, ours: Mapping[str, tf.Variable]
) -> dict[str, np.ndarray]:
  if not pathlib.Path(start.path).exists():
    raise errors.CheckpointError(
      f'init_from: there is no file {start.path}; check the path'
    )
  if start.mapping:
    return _mapped(_h5_values(start.path), start)
  models = tracking.owned_by(task).layers
  if len(models) != 1:
    raise errors.CheckpointError(
      f'init_from: {start.path} holds one model and the Task has '
      f'{len(models)} ({", ".join(models)}); give a mapping'
    )
  (model,) = models.values()
  try:
    model.load_weights(start.path, skip_mismatch=not start.strict)
  except (ValueError, KeyError, OSError) as error:
    names = list(_h5_values(start.path))
    raise _of_another_model(start.path, names, ours, error) from error
  return {name: variable.numpy() for name, variable in ours.items()}


def _h5_values(path: str) -> dict[str, np.ndarray]:
  """Returns `layers/dense/vars/0` -> value of each dataset in a Keras file."""
  found: dict[str, np.ndarray] = {}

  def visit(name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset):
      found[name] = np.asarray(item)

  with h5py.File(path, 'r') as file:
    file.visititems(visit)
  return found


def _mapped(
  values: Mapping[str, np.ndarray], start: WarmStart
) -> dict[str, np.ndarray]:
  found: dict[str, np.ndarray] = {}
  for name, value in values.items():
    for pattern, replacement in start.mapping.items():
      name = re.sub(pattern, replacement, name)
    if name in found:
      raise errors.CheckpointError(
        f'init_from: the mapping gives two values of {start.path} the name '
        f'{name}; make its patterns more specific'
      )
    found[name] = value
  return found


def _check_match(
  start: WarmStart,
  values: Mapping[str, np.ndarray],
  ours: Mapping[str, tf.Variable],
) -> None:
  given = {
    name: value
    for name, value in values.items()
    if not (start.exclude and re.search(start.exclude, name))
  }
  compared = structure_diff.Comparison(
    structure_diff.specs(given), structure_diff.specs(ours)
  )
  differences = compared.differences()
  fatal = start.strict or not compared.restored or compared.differing
  if differences and fatal:
    hint = compared.hint()
    raise errors.CheckpointError(
      f'init_from: {start.path} is of another model '
      f'({structure_diff.shortened(differences)}; {len(compared.restored)} of '
      f'{len(compared.ours)} weights would fit{f"; {hint}" if hint else ""}); '
      'give WarmStart a mapping, exclude what is new, or strict=False'
    )
  for difference in differences:
    logging.warning('init_from: %s', difference)


def _of_another_model(
  path: str, names: list[str], ours: Mapping[str, Any], error: Exception
) -> errors.CheckpointError:
  there = sorted(n.removesuffix(_TF_SUFFIX) for n in names if n != _TF_GRAPH)
  return errors.CheckpointError(
    f'init_from: {path} does not fit the model '
    f'({errors.one_line(error, 120)}); it holds '
    f'{", ".join(there[:3])}, ...; the model has '
    f'{", ".join(sorted(ours)[:3])}, ...; give WarmStart a mapping'
  )


def _assign_values(
  ours: Mapping[str, tf.Variable], values: Mapping[str, np.ndarray]
) -> None:
  for name, value in values.items():
    ours[name].assign(value)

"""SavedModels: written aside, reloaded, compared, then renamed."""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import buckets
from tftrain import errors
from tftrain import files
from tftrain import tasks
from tftrain import variables


def export_model(
  task: tasks.Task,
  features: Any,
  directory: str | pathlib.Path,
  *,
  signature: str = 'serving_default',
  part: Any = None,
) -> pathlib.Path:
  """Exports `task.serve` as a SavedModel with a free batch size.

  Where the Task keeps a moving average of its weights, that is what is
  exported.

  The export is reloaded and must give the live model's outputs on `features`
  to the bit before it gets its name. An existing export is left alone.

  Args:
    task: A built Task.
    features: A batch of what `serve` takes: a tensor, or a dict or tuple of
      tensors.
    directory: Where it goes; must not exist.
    signature: The signature's name. Inputs are called by their key, or
      `inputs` (`inputs_0`, ... of a tuple); outputs likewise.
    part: A model of the Task to export alone, such as a shared trunk: its
      variables and what it computes, instead of `serve`.

  Returns:
    `directory`.

  Raises:
    ExportError: The directory exists, or the reloaded model differs.
  """
  directory = pathlib.Path(directory)
  if directory.exists():
    raise errors.ExportError(f'{directory} exists; remove it or name another')
  module = _Exported(_variables(task if part is None else part))
  named = _named('inputs', features)
  module.serve = _concrete_serve(task, features, part)
  files.make_directory(directory.parent)
  try:
    with task.averaged(), files.staged_directory(directory) as staged:
      tf.saved_model.save(
        module, str(staged), signatures={signature: module.serve}
      )
      _compare(module.serve(**named), staged, signature, named)
  except (OSError, tf.errors.OpError) as error:
    raise errors.ExportError(
      f'exporting to {directory} failed: {errors.one_line(error)}; mend that, '
      'then start the same command again'
    ) from error
  return directory


def check_serve(task: tasks.Task, features: Any) -> None:
  """Raises ExportError now where an export could only fail at the end."""
  try:
    _concrete_serve(task, features)
  except errors.Error:
    raise
  except Exception as error:
    raise errors.ExportError(
      f'serve() of {type(task).__name__} cannot be exported: '
      f'{errors.one_line(error)}; mend it, or train with export=False'
    ) from error


def _concrete_serve(task: tasks.Task, features: Any, part: Any = None) -> Any:
  named = _named('inputs', features)
  specs = {
    name: tf.TensorSpec([None, *value.shape[1:]], value.dtype, name=name)
    for name, value in named.items()
  }

  def compute(given: Any) -> Any:
    return task.serve(given) if part is None else part(given, training=False)

  def serve(**inputs: Any) -> dict[str, Any]:
    given: Any = inputs
    if not isinstance(features, dict):
      leaves = [inputs[name] for name in named]
      given = tf.nest.pack_sequence_as(features, leaves)
    with task.calls():
      return _named('outputs', compute(given))

  return tf.function(serve).get_concrete_function(**specs)


def _named(prefix: str, value: Any) -> dict[str, Any]:
  """Tensors by name: a dictionary's keys, `prefix`, or `prefix_0`, ..."""
  if isinstance(value, dict):
    return value
  leaves = tf.nest.flatten(value)
  if len(leaves) == 1:
    return {prefix: leaves[0]}
  return {f'{prefix}_{index}': leaf for index, leaf in enumerate(leaves)}


class _Exported(tf.Module):  # type: ignore[misc]
  """Holds what a SavedModel must contain."""

  def __init__(self, all_variables: Sequence[tf.Variable]):
    super().__init__()
    # Named one by one: converters overlook variables that Keras hides.
    self.all_variables = list(all_variables)
    self.serve: Any = None


def _variables(owner: Any) -> list[tf.Variable]:
  """Every variable of a Task or of one of its models."""
  if isinstance(owner, tasks.Task):
    return owner.all_variables()
  owned = variables.Owned()
  owned.visit('part', owner)
  return [buckets.raw(variable) for variable in owned.variables.values()]


def _compare(
  live: Any, directory: pathlib.Path, signature: str, features: Any
) -> None:
  reloaded = tf.saved_model.load(str(directory)).signatures[signature]
  for name, value in reloaded(**features).items():
    difference = np.max(
      np.abs(live[name].numpy().astype(float) - value.numpy().astype(float)),
      initial=0.0,
    )
    if not difference == 0.0:
      raise errors.ExportError(
        f'the exported model differs from the live one by {difference:g} in '
        f'{name!r}; does serve() depend on the time, on chance or on state '
        'that is not saved?'
      )

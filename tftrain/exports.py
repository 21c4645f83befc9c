"""SavedModels: written aside, reloaded, compared, then renamed."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain import files
from tftrain import tasks


def export_model(
  task: tasks.Task,
  features: Any,
  directory: str | pathlib.Path,
  *,
  signature: str = 'serving_default',
) -> pathlib.Path:
  """Exports `task.serve` as a SavedModel with a free batch size.

  The export is reloaded and must give the live model's outputs on `features`
  to the bit before it gets its name. An existing export is left alone.

  Args:
    task: A built Task.
    features: A batch of what `serve` takes: a tensor or a dict of tensors.
    directory: Where it goes; must not exist.
    signature: The signature's name. Inputs are called by their key, or
      `inputs`; outputs by their key, or `outputs`.

  Returns:
    `directory`.

  Raises:
    ExportError: The directory exists, or the reloaded model differs.
  """
  directory = pathlib.Path(directory)
  if directory.exists():
    raise errors.ExportError(f'{directory} exists; remove it or name another')
  named = features if isinstance(features, dict) else {'inputs': features}
  specs = {
    name: tf.TensorSpec([None, *value.shape[1:]], value.dtype, name=name)
    for name, value in named.items()
  }

  def serve(**inputs: Any) -> dict[str, Any]:
    given = inputs if isinstance(features, dict) else inputs['inputs']
    outputs = task.serve(given)
    return outputs if isinstance(outputs, dict) else {'outputs': outputs}

  module = _Exported(task)
  module.serve = tf.function(serve).get_concrete_function(**specs)
  files.make_directory(directory.parent)
  with files.staged_directory(directory) as staged:
    tf.saved_model.save(
      module, str(staged), signatures={signature: module.serve}
    )
    _compare(module.serve(**named), staged, signature, named)
  return directory


class _Exported(tf.Module):  # type: ignore[misc]
  """Holds what a SavedModel must contain."""

  def __init__(self, task: tasks.Task):
    super().__init__()
    # Named one by one: converters overlook variables that Keras hides.
    self.all_variables = task.all_variables()
    self.serve: Any = None


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

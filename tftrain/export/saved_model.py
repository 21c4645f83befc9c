"""SavedModel export: stages, verifies and atomically renames a SavedModel."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import pathlib
import subprocess
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import serving_decoder
from tftrain.export import _model_card
from tftrain.export import converters
from tftrain.export import isolated_process
from tftrain.export import signature
from tftrain.interop import tracking
from tftrain.interop import variables as variables_lib
from tftrain.platform import files
from tftrain.task import task as task_lib

COMPARISON = 'comparison.json'
CARD = 'model.md'


def export_model(
  task: task_lib.Task,
  features: Any,
  directory: str | pathlib.Path,
  *,
  part: Any = None,
  formats: Sequence[str] = (),
  decoder: serving_decoder.Decoder | None = None,
  fresh: bool | isolated_process.IsolatedProcess = False,
  about: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Exports `task.serve` as a SavedModel with a free batch size.

  If the Task keeps moving averages (EMA) of its weights, the export holds the
  averages. The export also offers `task.signatures` and, with a `decoder`, a
  signature that runs `serve` on serialized tf.train.Examples. Serving then
  processes records exactly like training.

  The files are written to a staging directory, compared with the live model on
  `features`, and then renamed. The SavedModel must equal the live model to the
  bit (within 1e-5 if `fresh` is set and a GPU is present), other formats within
  a tolerance. `comparison.json` holds the differences, `model.md` is the model
  card.

  Args:
    task: A built Task.
    features: Batch of inputs of `serve`, `[batch, ...]`: a tensor, or a dict or
      tuple of tensors.
    directory: Directory to create; it must not exist.
    part: Model of the Task to export instead of `serve`, such as a shared
      backbone; None exports the whole Task.
    formats: Further formats to write, by name; see `Export.formats`.
    decoder: Decoder of serialized records; see `Pipeline.decoder`.
    fresh: Whether a fresh process, which takes seconds to start, runs the
      SavedModel for the comparison; or such a process, which was started.
    about: Facts about the origin of the model, for `model.md`.

  Returns:
    `directory`.

  Raises:
    ConfigError: If a format is unknown, or its package is not installed.
    ExportError: If `directory` exists, the export fails, or its outputs differ
      from the live model.
  """
  directory = pathlib.Path(directory)
  if directory.exists():
    raise errors.ExportError(f'{directory} exists; remove it or name another')
  chosen = {name: converters.of_name(name) for name in formats}
  offered = _offered(task, features, part, decoder)
  traced = _traced(task, offered)
  module = _Exported(_variables(task if part is None else part), traced)
  given = {name: _tensors(one.example) for name, one in offered.items()}
  files.make_directory(directory.parent)
  with (
    _explained(directory),
    _started(fresh) as process,
    task.averaged(),
    files.staged_directory(directory) as staged,
  ):
    seen = _write_and_compare(task, module, given, staged, chosen, process)
    how = {'fresh process': process is not None}
    files.write_json(staged / COMPARISON, {**how, **seen})
    card = _model_card.text(staged, directory, module, seen, about or {})
    files.write_text(staged / CARD, card)
  return directory


@contextlib.contextmanager
def _started(
  fresh: bool | isolated_process.IsolatedProcess,
) -> Iterator[isolated_process.IsolatedProcess | None]:
  """Provides a fresh process, which starts while the model is written."""
  if not fresh:
    yield None
    return
  given = isolated_process.IsolatedProcess() if fresh is True else fresh
  with given as process:
    yield process


@contextlib.contextmanager
def _explained(directory: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except errors.Error:
    raise
  except (
    OSError,
    ValueError,  # raised for an unreadable SavedModel
    tf.errors.OpError,
    subprocess.TimeoutExpired,
    isolated_process.IsolatedProcessError,
  ) as error:
    raise errors.ExportError(
      f'exporting to {directory} failed: {errors.one_line(error)}; mend that, '
      'then start the same command again'
    ) from error


def _write_and_compare(
  task: task_lib.Task,
  module: Any,
  given: Mapping[str, Mapping[str, tf.Tensor]],
  staged: pathlib.Path,
  chosen: Mapping[str, converters.Format],
  process: isolated_process.IsolatedProcess | None,
) -> dict[str, Any]:
  """Writes all files, runs them, and returns their differences."""
  tf.saved_model.save(module, str(staged), signatures=module.offered)
  live = {name: module.offered[name](**given[name]) for name in given}
  serve = signature.SERVE
  return {
    'signatures': _compared_signatures(staged, given, live, process),
    'formats': {
      name: _compared_format(one, task, staged, given[serve], live[serve])
      for name, one in chosen.items()
    },
  }


def check_serve(
  task: task_lib.Task,
  features: Any,
  decoder: serving_decoder.Decoder | None = None,
) -> None:
  """Raises ExportError early if the signatures cannot be exported."""
  _traced(task, _offered(task, features, None, decoder))


def _traced(
  task: task_lib.Task, offered: Mapping[str, signature.Signature]
) -> dict[str, Any]:
  return {n: signature.trace(task, n, one) for n, one in offered.items()}


def _offered(
  task: task_lib.Task,
  features: Any,
  part: Any,
  decoder: serving_decoder.Decoder | None,
) -> dict[str, signature.Signature]:
  if part is not None:
    return signature.of_part(part, features)
  offered = signature.of_task(task, features)
  if decoder is not None:
    offered[signature.RECORDS] = signature.of_records(task, decoder)
  for name in offered:
    files.check_name(name, f'the signature of {type(task).__name__}')
  return offered


class _Exported(tf.Module):  # type: ignore[misc]
  """The variables and the signatures of a SavedModel."""

  def __init__(
    self, all_variables: Sequence[tf.Variable], offered: Mapping[str, Any]
  ):
    super().__init__()
    # A plain list: converters overlook variables that Keras hides.
    self.all_variables = list(all_variables)
    self.offered = dict(offered)


def _variables(owner: Any) -> list[tf.Variable]:
  """Returns every variable of a Task or of one of its models."""
  if isinstance(owner, task_lib.Task):
    return owner.all_variables()
  owned = tracking.Owned()
  owned.visit('part', owner)
  return [variables_lib.raw(variable) for variable in owned.variables.values()]


def _tensors(given: Mapping[str, Any]) -> dict[str, tf.Tensor]:
  return {name: tf.convert_to_tensor(value) for name, value in given.items()}


def _compared_signatures(
  staged: pathlib.Path,
  given: Mapping[str, Mapping[str, tf.Tensor]],
  live: Mapping[str, Mapping[str, tf.Tensor]],
  process: isolated_process.IsolatedProcess | None,
) -> dict[str, Any]:
  """Runs the SavedModel and compares its outputs with the live ones."""
  if process is not None:
    with files.scratch_directory() as scratch:
      found = process.run(staged, given, scratch)
  else:
    found = isolated_process.call(staged, given)
  # The fresh process computes on the CPU: this process holds the GPU memory.
  on_gpu = bool(tf.config.list_physical_devices('GPU'))
  tolerance = 1e-5 if process is not None and on_gpu else 0.0
  return {
    name: _compare_outputs(
      f'signature {name!r}', live[name], found[name], tolerance
    )
    for name in live
  }


def _compared_format(
  one: converters.Format,
  task: task_lib.Task,
  staged: pathlib.Path,
  given: Mapping[str, Any],
  live: Mapping[str, Any],
) -> dict[str, Any]:
  path = staged / one.file
  one.write(task, staged, path)
  return _compare_outputs(one.file, live, one.run(path, given), one.tolerance)


def _compare_outputs(
  what: str,
  live: Mapping[str, Any],
  found: Mapping[str, Any],
  tolerance: float,
) -> dict[str, Any]:
  """Compares outputs by name.

  Raises:
    ExportError: If an output differs by more than `tolerance`.
  """
  seen = {}
  for name, value in live.items():
    difference = _difference(np.asarray(value), np.asarray(found[name]))
    if not difference <= tolerance:
      raise errors.ExportError(
        f'{what} of the export differs from the live one by {difference:g} of '
        f'the largest value in {name!r}, where {tolerance:g} is allowed; does '
        'it depend on the time, on chance or on state that is not saved?'
      )
    seen[name] = {
      'difference': difference,
      'tolerance': tolerance,
      'shape': list(np.shape(value)),
      'dtype': np.asarray(value).dtype.name,
    }
  return seen


def _difference(live: np.ndarray, found: np.ndarray) -> float:
  """Returns the largest difference, relative to the largest value.

  The result is inf if shapes or strings differ.
  """
  if live.shape != found.shape:
    return np.inf
  if live.dtype.kind in 'OSU':
    return 0.0 if (live == found).all() else np.inf
  one, other = live.astype(float), found.astype(float)
  same = (one == other) | (np.isnan(one) & np.isnan(other))
  if same.all():
    return 0.0
  largest = np.max(np.abs(one), where=np.isfinite(one), initial=0.0) or 1.0
  return float(np.max(np.where(same, 0.0, np.abs(one - other))) / largest)

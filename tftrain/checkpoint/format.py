"""Checkpoint format: a TF bundle, and a manifest that verifies it.

checkpoints/ckpt-00001000/manifest.json     every value: shape, dtype, SHA-256
checkpoints/ckpt-00001000/state.{index,data-00000-of-00001}   a TF bundle
"""

from collections.abc import Mapping
import errno
import json
import pathlib
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.platform import files
from tftrain.platform import hashing

BUNDLE = 'state'

_NAME = re.compile(r'ckpt-(\d{8,})')
_MANIFEST = 'manifest.json'

DAMAGED = (OSError, ValueError, KeyError, IndexError, tf.errors.OpError)
"""Exceptions that reading a damaged checkpoint may raise."""

_PASSING = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM)


def is_transient(error: BaseException) -> bool:
  """Returns whether an error is transient: of the machine, not the file."""
  if isinstance(error, OSError):
    return error.errno in _PASSING
  passing = tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError
  return isinstance(error, passing) or 'Too many open files' in str(error)


def checkpoint_path(directory: pathlib.Path, step: int) -> pathlib.Path:
  return directory / f'ckpt-{step:08d}'


def committed_steps(directory: pathlib.Path) -> list[int]:
  """Returns the steps of the checkpoints in `directory`, oldest first."""
  try:
    names = [path.name for path in directory.iterdir()]
  except FileNotFoundError:
    return []
  except OSError as error:
    raise errors.RunDirectoryError(
      f'cannot read {directory}: {error.strerror}; choose another model_dir or '
      'change its permissions'
    ) from error
  matches = (_NAME.fullmatch(name) for name in names)
  return sorted(int(match[1]) for match in matches if match)


def write_checkpoint(
  directory: pathlib.Path,
  step: int,
  state: Mapping[str, tf.Tensor],
  said: Mapping[str, Any],
) -> None:
  """Writes a bundle and its manifest, and verifies both by reading them back.

  Args:
    directory: An existing, empty directory.
    step: Step of the run.
    state: Name -> value.
    said: Further entries of the manifest (JSON).
  """
  names = sorted(state)
  arrays = {name: state[name].numpy() for name in names}
  values = {
    name: {
      'shape': list(array.shape),
      'dtype': state[name].dtype.name,
      'sha256': hashing.array_digest(array),
    }
    for name, array in arrays.items()
  }
  finite = all(
    bool(np.isfinite(array).all())
    for array in arrays.values()
    if tf.as_dtype(array.dtype).is_floating
  )
  manifest = {
    'format': 1,
    'step': step,
    'finite': finite,
    'values': values,
    'versions': {'tensorflow': tf.__version__, 'keras': keras.__version__},
    **said,
  }
  with tf.device('CPU:0'):
    tf.raw_ops.SaveV2(
      prefix=str(directory / BUNDLE),
      tensor_names=names,
      shape_and_slices=[''] * len(names),
      tensors=[state[name] for name in names],
    )
  files.write_json(directory / _MANIFEST, manifest)
  read_checkpoint(directory)


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
  manifest = json.loads((path / _MANIFEST).read_text(encoding='utf-8'))
  for name in ('values', 'facts', 'actions'):
    manifest[name]  # a missing entry is damage, found here
  return dict(manifest)


def read_checkpoint(
  path: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads a checkpoint and verifies each value by its digest."""
  manifest = read_manifest(path)
  values = manifest['values']
  names = sorted(values)
  with tf.device('CPU:0'):
    tensors = tf.raw_ops.RestoreV2(
      prefix=str(path / BUNDLE),
      tensor_names=names,
      shape_and_slices=[''] * len(names),
      dtypes=[tf.as_dtype(values[name]['dtype']) for name in names],
    )
  state = {
    name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)
  }
  for name, array in state.items():
    shape = values[name]['shape']
    if (
      list(array.shape) != shape
      or hashing.array_digest(array) != values[name]['sha256']
    ):
      raise ValueError(f'{name} differs from its digest in {_MANIFEST}')
  return manifest, state

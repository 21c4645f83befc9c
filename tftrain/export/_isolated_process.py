"""Runs an exported model in a fresh process without tftrain.

The fresh process runs this file as a script, so the file imports nothing from
the library: `python -I _isolated_process.py EXPORT GIVEN.npz FOUND.npz`.
"""

from collections.abc import Mapping
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import tensorflow as tf

Batches = Mapping[str, Mapping[str, Any]]
"""Signature -> name of an input -> tensor."""

_LIMIT = 600  # seconds
_SEPARATOR = '\n'  # occurs in no name


class IsolatedProcessError(Exception):
  """Failure of the fresh process; the message is its last line of stderr."""


def run(
  export: pathlib.Path, given: Batches, scratch: pathlib.Path
) -> dict[str, dict[str, np.ndarray]]:
  """Runs the signatures of an export in a fresh process.

  Args:
    export: Directory of the SavedModel.
    given: Inputs of each signature.
    scratch: Directory for temporary files.

  Returns:
    Signature -> name of an output -> array.

  Raises:
    IsolatedProcessError: If the process cannot load or run the model.
    TimeoutExpired: If the process takes longer than 600 s.
  """
  sent, received = scratch / 'given.npz', scratch / 'found.npz'
  _write_batches(sent, given)
  # -I: imports from neither the working directory nor PYTHONPATH.
  command = [sys.executable, '-I', __file__]
  done = subprocess.run(
    [*command, str(export), str(sent), str(received)],
    capture_output=True,
    text=True,
    timeout=_LIMIT,
    check=False,
  )
  if done.returncode:
    lines = done.stderr.strip().splitlines() or [f'exit {done.returncode}']
    raise IsolatedProcessError(lines[-1])
  return _read_batches(received)


def call(export: pathlib.Path, given: Batches) -> dict[str, Any]:
  """Runs the signatures of an export in this process."""
  loaded = tf.saved_model.load(str(export))
  return {
    name: dict(loaded.signatures[name](**tensors))
    for name, tensors in given.items()
  }


def _write_batches(path: pathlib.Path, batches: Batches) -> None:
  """Writes serialized tensors: NumPy lacks bfloat16 and arbitrary strings."""
  arrays: dict[str, Any] = {
    f'{signature}{_SEPARATOR}{name}': np.frombuffer(
      tf.io.serialize_tensor(value).numpy(), np.uint8
    )
    for signature, tensors in batches.items()
    for name, value in tensors.items()
  }
  np.savez(path, **arrays)


def _read_batches(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  found: dict[str, dict[str, Any]] = {}
  with np.load(path) as arrays:
    for key in arrays.files:
      signature, name = key.split(_SEPARATOR)
      serialized = arrays[key].tobytes()
      proto = tf.make_tensor_proto(0)
      proto.ParseFromString(serialized)
      value = tf.io.parse_tensor(serialized, tf.as_dtype(proto.dtype))
      found.setdefault(signature, {})[name] = value
  return found


def main(export: str, given: str, found: str) -> None:
  batches = _read_batches(pathlib.Path(given))
  _write_batches(pathlib.Path(found), call(pathlib.Path(export), batches))


if __name__ == '__main__':
  main(*sys.argv[1:])

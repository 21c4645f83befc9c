"""Runs an exported model in a process that knows nothing of tftrain.

This file imports nothing of the library, because the other process runs it as
a script of its own: `python -I elsewhere.py EXPORT GIVEN.npz FOUND.npz`.
"""

from collections.abc import Mapping
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import tensorflow as tf

Batches = Mapping[str, Mapping[str, Any]]
"""Signature -> name -> tensor."""

_LIMIT = 600  # seconds
_SEPARATOR = '\n'  # is in no name


class ElsewhereError(Exception):
  """The other process could not run the model; the text says why."""


def run(
  export: pathlib.Path, given: Batches, scratch: pathlib.Path
) -> dict[str, dict[str, np.ndarray]]:
  """What the signatures of an export compute in a fresh process.

  Args:
    export: Where it lies.
    given: Its inputs.
    scratch: A directory for files that do not matter later.

  Raises:
    ElsewhereError: It could not be loaded or run.
  """
  sent, received = scratch / 'given.npz', scratch / 'found.npz'
  _write(sent, given)
  # -I: neither the working directory nor PYTHONPATH is looked at.
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
    raise ElsewhereError(lines[-1])
  return _read(received)


def call(export: pathlib.Path, given: Batches) -> dict[str, Any]:
  """What the signatures of an export compute in this process."""
  loaded = tf.saved_model.load(str(export))
  return {
    name: dict(loaded.signatures[name](**tensors))
    for name, tensors in given.items()
  }


def _write(path: pathlib.Path, batches: Batches) -> None:
  """As serialized tensors: NumPy has neither bfloat16 nor texts of any kind."""
  arrays: dict[str, Any] = {
    f'{signature}{_SEPARATOR}{name}': np.frombuffer(
      tf.io.serialize_tensor(value).numpy(), np.uint8
    )
    for signature, tensors in batches.items()
    for name, value in tensors.items()
  }
  np.savez(path, **arrays)


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
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
  batches = _read(pathlib.Path(given))
  _write(pathlib.Path(found), call(pathlib.Path(export), batches))


if __name__ == '__main__':
  main(*sys.argv[1:])

"""Runs an exported model in a fresh process without tftrain.

The fresh process runs this file as a script, so the file imports nothing from
the library: `python -I isolated_process.py`. It reads from stdin what to run.
"""

from collections.abc import Mapping
import json
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


class IsolatedProcess:
  """A fresh process, which takes seconds to import TensorFlow, for one export.

  It ends by itself if this process dies. As a context manager it is closed.
  """

  def __init__(self) -> None:
    # -I: imports from neither the working directory nor PYTHONPATH.
    self._process = subprocess.Popen(
      [sys.executable, '-I', __file__],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )

  @property
  def is_running(self) -> bool:
    return self._process.poll() is None

  def run(
    self, export: pathlib.Path, given: Batches, scratch: pathlib.Path
  ) -> dict[str, dict[str, np.ndarray]]:
    """Runs the signatures of an export, once.

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
    paths = [str(path.resolve()) for path in (export, sent, received)]
    _, said = self._process.communicate(json.dumps(paths), timeout=_LIMIT)
    if self._process.returncode:
      lines = said.strip().splitlines()
      last = lines[-1] if lines else f'exit {self._process.returncode}'
      raise IsolatedProcessError(last)
    return _read_batches(received)

  def close(self) -> None:
    """Ends the process."""
    with self._process:  # closes its pipes, and waits for its end
      self._process.kill()

  def __enter__(self) -> 'IsolatedProcess':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


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


def main(paths: str) -> None:
  """Runs an export; `paths` is JSON: export, its inputs, its outputs."""
  if not paths:  # not needed after all
    return
  export, given, found = map(pathlib.Path, json.loads(paths))
  _write_batches(found, call(export, _read_batches(given)))


if __name__ == '__main__':
  main(sys.stdin.read())

"""NaN debugging: names the first op and the arrays that are not finite."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain.interop import autograph

_OP = re.compile(r'Detected Infinity or NaN in output \d+ of [\w-]+ op "(\w+)"')
_FOUND = re.compile(r': Tensor had (.*?) values')
_NODE = re.compile(r'Detected at node (\S+)')
# TensorFlow omits its own frames.
_FRAME = re.compile(r'File "(.+)", line (\d+), in (\S+)')
_HERE = str(pathlib.Path(__file__).parents[1])
_LIBRARY = re.compile(r'/site-packages/|/lib/python|^<')


@contextlib.contextmanager
def checked() -> Iterator[None]:
  """Enables tf.debugging.check_numerics for functions traced in this context.

  They raise an error that names the first op with a NaN or Inf. The checks cost
  about as much time as the step itself.
  """
  tf.debugging.enable_check_numerics()
  try:
    yield
  finally:
    tf.debugging.disable_check_numerics()


def describe_error(error: BaseException) -> str | None:
  """Returns 'Log made -Inf (loss.py, line 6, in loss)', the op and its line.

  Other errors than those of check_numerics give None.
  """
  text = str(error)
  op, found = _OP.search(text), _FOUND.search(text)
  if not op:
    return None
  node = _NODE.search(text)
  where = ' in the gradient' if node and 'gradient_tape' in node[1] else ''
  what = f'{op[1]}{where} made {found[1] if found else "NaN or Inf"}'
  frames = [
    (*autograph.origin(path, int(line)), name.removeprefix('tf__'))
    for path, line, name in _FRAME.findall(text)
  ]
  users = [
    frame
    for frame in frames
    if not _LIBRARY.search(frame[0]) and not frame[0].startswith(_HERE)
  ]
  if not users:
    return what
  path, line, function = users[-1]
  return f'{what} ({pathlib.Path(path).name}, line {line}, in {function})'


def nonfinite_arrays(named: Iterable[tuple[str, Any]]) -> Iterator[str]:
  """Yields a message with the count and first index of NaN or Inf per array.

  Finite arrays yield nothing.

  Args:
    named: (name, array `[rows, ...]`) pairs.
  """
  for name, value in named:
    array = np.asarray(value)
    if not tf.as_dtype(array.dtype).is_floating:
      continue
    bad = ~np.isfinite(array.astype(np.float32))
    if bad.any():
      first = [int(i) for i in np.argwhere(bad)[0]]
      what = _nonfinite_kinds(array[bad].astype(np.float32))
      count = int(bad.sum())
      yield f'{name}: {count} of {array.size} are {what}, first at {first}'


def bad_gradients(finite: Mapping[str, Any]) -> list[str]:
  """Returns the names of the gradients that are not finite."""
  return [name for name, is_finite in finite.items() if not bool(is_finite)]


def _nonfinite_kinds(values: np.ndarray) -> str:
  kinds = {'NaN': np.isnan(values).any(), 'Inf': np.isinf(values).any()}
  return ' or '.join(name for name, there in kinds.items() if there)

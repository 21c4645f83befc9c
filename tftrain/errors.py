"""Every error tftrain raises: one line that says what, where and what to do.

Error
├── ConfigError        a gin file, a binding or a flag               exit code 2
├── InputError         the data: none, wrong shape, wrong labels     exit code 2
├── TaskError          the model, the loss or the optimizer          exit code 2
├── StrategyError      devices and distribution                      exit code 2
├── RunDirectoryError  model_dir: unwritable, in use, another run's  exit code 2
├── CheckpointError    none readable, or of another model            exit code 2
│   └── DamagedError   one that was asked for cannot be read         exit code 2
├── OutOfMemoryError   a step needs more than there is               exit code 1
├── NonFiniteError     the loss or a gradient became NaN or infinite exit code 1
│   └── LossSpikeError the loss rose far above what it was          exit code 1
├── WorkerError        another of several workers is gone        exit code 1
└── ExportError        the exported model could not be trusted       exit code 1
"""

from collections.abc import Iterable
import numbers
import re
from typing import Any, TypeGuard


class Error(Exception):
  """The root of the tree; `exit_code` is what the command line returns."""

  exit_code = 1


class ConfigError(Error, ValueError):
  exit_code = 2


class InputError(Error, ValueError):
  exit_code = 2


class TaskError(Error, ValueError):
  exit_code = 2


class StrategyError(Error, ValueError):
  exit_code = 2


class RunDirectoryError(Error):
  exit_code = 2


class CheckpointError(Error):
  exit_code = 2


class DamagedError(CheckpointError):
  pass


class OutOfMemoryError(Error):
  pass


class NonFiniteError(Error):
  """Raised at the exact step whose loss or gradient is not finite.

  The weights are those before that step: the update was not applied.
  """

  def __init__(self, message: str, *, step: int):
    super().__init__(message)
    self.step = step


class NumericsError(Error):
  """Raised where numerics are checked and an operation made NaN or Inf."""


class LossSpikeError(NonFiniteError):
  """Raised by LossSpike at the step that ends the interval it looked at."""


class WorkerError(Error):
  pass


class ExportError(Error):
  pass


# How TensorFlow dresses the one line that matters.
_DRESSING = (
  'Graph execution error',
  'Detected at node',
  'File "',
  '[[',
  '<',
  'Hint: ',
  '[Op:',
)
# AutoGraph puts the frames of the user's code first.
_FRAMES = re.compile(r'(?:\w+: )?in user code:\n(?:\s*File ".*\n.*\n)+')
# Keras prints the cause in bold, between the layer and its arguments.
_BOLD = re.compile(r'\x1b\[[\d;]*m')
_LAYER = re.compile(r'Exception encountered when calling (.+)\.$')


def one_line(error: BaseException, limit: int = 300) -> str:
  """The telling line of a long error text, for use inside ours.

  What happened in a Keras layer begins with that layer: `Dense.call(): ...`.
  """
  text = str(getattr(error, 'message', None) or error)
  if isinstance(error, KeyError):  # its text is the repr of what it was given
    text = text.replace(r'\n', '\n').replace(r'\x1b', '\x1b')
  layer, lines = _undressed(_FRAMES.sub('', _BOLD.sub('', text)))
  line = type(error).__name__
  if lines:
    line = lines[-1] if 'Graph execution error' in text else lines[0]
  line = layer + re.sub(r'\{\{.*?\}\}\s*|\s*\[Op:\w+\] name:.*', '', line)
  return brief(line, limit)


def brief(text: str, limit: int = 120) -> str:
  """The beginning of a text that may be long."""
  return text if len(text) <= limit else text[: limit - 1] + '…'


def _undressed(text: str) -> tuple[str, list[str]]:
  """(the layer it happened in, or '', the lines that say what happened)."""
  layer = ''
  lines: list[str] = []
  for line in map(str.strip, text.splitlines()):
    found = _LAYER.search(line)
    if found:
      layer = f'{found[1]}: '
    if found or line.endswith('Error encountered:'):
      lines = []  # what came before is dressing too
    elif layer and line.startswith('Arguments received by'):
      break
    elif line and not line.startswith(_DRESSING):
      lines.append(line)
  return layer, lines


def is_count(value: Any, least: int = 1) -> TypeGuard[int]:
  """Returns whether `value` is a whole number of at least `least`; no bool."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return whole and bool(value >= least)


def check_count(
  name: str, value: Any, error: type[Error] = ConfigError
) -> None:
  """Raises `error`, which names the argument, if `value` is no count from 1."""
  if not is_count(value):
    raise error(f'{name} must be a whole number of at least 1, got {value!r}')


def listing(names: Iterable[str], most: int = 5) -> str:
  """The first few of `names`, and how many more there are."""
  names = list(names)
  more = len(names) - most
  return ', '.join(names[:most]) + (f' and {more} more' if more > 0 else '')

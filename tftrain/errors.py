"""Exceptions of tftrain, with their exit codes.

Each message is one line that names the fault, its location and a remedy.

Error
├── ConfigError        invalid gin file, binding or flag            exit code 2
├── InputError         missing data, wrong shape or wrong labels    exit code 2
├── TaskError          invalid model, loss or optimizer             exit code 2
├── StrategyError      invalid devices or distribution              exit code 2
├── RunDirectoryError  model_dir: unwritable, in use, another run's exit code 2
├── CheckpointError    no readable checkpoint, or of another model  exit code 2
│   └── DamagedError   the requested checkpoint is unreadable       exit code 2
├── OutOfMemoryError   a step exceeds the available memory          exit code 1
├── NonFiniteError     the loss or a gradient is NaN or infinite    exit code 1
│   └── LossSpikeError the loss rises far above its median          exit code 1
├── NumericsError      an operation returns NaN or infinity         exit code 1
├── WorkerError        another worker is lost                       exit code 1
└── ExportError        the exported model cannot be verified        exit code 1
"""

from collections.abc import Iterable
import numbers
import re
from typing import Any, TypeGuard


class Error(Exception):
  """Base class of all errors of tftrain.

  Attributes:
    exit_code: Exit status of the command line.
  """

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
  """Loss or gradient that is not finite, raised at the exact step.

  The update of that step is not applied: the weights are those before it.

  Attributes:
    step: The faulty step.
  """

  def __init__(self, message: str, *, step: int):
    super().__init__(message)
    self.step = step


class NumericsError(Error):
  """NaN or infinity in the result of an operation, with numeric checks on."""


class LossSpikeError(NonFiniteError):
  """Loss spike, raised by LossSpike at the last step of its interval."""


class WorkerError(Error):
  pass


class ExportError(Error):
  pass


# Beginnings of the lines that TensorFlow adds to the cause of an error.
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
# TensorFlow lists the errors of parallel branches: (0) INVALID_ARGUMENT: text
_ROOT = re.compile(r'\(\d+\) [A-Z_]+:\s+(.*)')
_LAYER = re.compile(r'Exception encountered when calling (.+)\.$')


def one_line(error: BaseException, limit: int = 300) -> str:
  """Returns the line of a long error text that names the cause.

  If the error arose in a Keras layer, the line begins with the name of the
  layer: `Dense.call(): ...`.
  """
  text = str(getattr(error, 'message', None) or error)
  if isinstance(error, KeyError):  # str() of it is the repr of its argument
    text = text.replace(r'\n', '\n').replace(r'\x1b', '\x1b')
  layer, lines = _undressed(_FRAMES.sub('', _BOLD.sub('', text)))
  line = type(error).__name__
  roots = [root[1] for root in map(_ROOT.match, lines) if root]
  if roots:
    line = roots[0]
  elif lines:
    line = lines[-1] if 'Graph execution error' in text else lines[0]
  line = layer + re.sub(r'\{\{.*?\}\}\s*|\s*\[Op:\w+\] name:.*', '', line)
  return brief(line, limit)


def brief(text: str, limit: int = 120) -> str:
  """Returns the text, cut to `limit` characters."""
  return text if len(text) <= limit else text[: limit - 1] + '…'


def _undressed(text: str) -> tuple[str, list[str]]:
  """Returns (layer that raised, or '', lines that describe the error)."""
  layer = ''
  lines: list[str] = []
  for line in map(str.strip, text.splitlines()):
    found = _LAYER.search(line)
    if found:
      layer = f'{found[1]}: '
    if found or line.endswith('Error encountered:'):
      lines = []  # the lines before it are not the cause
    elif layer and line.startswith('Arguments received by'):
      break
    elif line and not line.startswith(_DRESSING):
      lines.append(line)
  return layer, lines


def is_count(value: Any, least: int = 1) -> TypeGuard[int]:
  """Returns whether `value` is an integer, but no bool, >= `least`."""
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return whole and bool(value >= least)


def check_count(
  name: str, value: Any, error: type[Error] = ConfigError
) -> None:
  """Raises `error` unless the argument `name` is a whole number >= 1."""
  if not is_count(value):
    raise error(f'{name} must be a whole number of at least 1, got {value!r}')


def listing(names: Iterable[str], most: int = 5) -> str:
  """Returns the first `most` names as text, and the number of the others."""
  names = list(names)
  more = len(names) - most
  return ', '.join(names[:most]) + (f' and {more} more' if more > 0 else '')

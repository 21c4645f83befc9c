"""Timeouts for calls that may never return, such as calls to other machines."""

from collections.abc import Callable
from collections.abc import Mapping
import threading
from typing import TypeVar

from tftrain import errors

_T = TypeVar('_T')

DEFAULT = 120.0
"""The default timeout, in seconds."""


def read(environment: Mapping[str, str], name: str) -> float:
  """Returns the seconds in the environment variable `name`, or the default.

  Raises:
    StrategyError: If the value of the variable is not a number.
  """
  text = environment.get(name, str(DEFAULT))
  try:
    return float(text)
  except ValueError as error:
    raise errors.StrategyError(
      f'{name}={text!r} must be a number of seconds'
    ) from error


def within(seconds: float, function: Callable[[], _T]) -> _T:
  """Calls `function` with a timeout and returns its result.

  `function` must let other threads run while it waits. It cannot be cancelled:
  after a timeout it continues in a daemon thread, which does not keep the
  process alive.

  Raises:
    TimeoutError: If `function` has not returned after `seconds`.
    BaseException: If `function` raised it.
  """
  found: list[_T] = []
  failed: list[BaseException] = []

  def call() -> None:
    try:
      found.append(function())
    except BaseException as error:  # raised below, on the calling thread
      failed.append(error)

  thread = threading.Thread(target=call, name='tftrain-deadline', daemon=True)
  thread.start()
  thread.join(seconds)
  if failed:
    raise failed[0]
  if not found:
    raise TimeoutError(f'no answer within {seconds:g} s')
  return found[0]

"""An end to calls that may never return, such as those to other machines."""

from collections.abc import Callable
from collections.abc import Mapping
import threading
from typing import TypeVar

from tftrain import errors

_T = TypeVar('_T')

DEFAULT = 120.0
"""Seconds."""


def read(environment: Mapping[str, str], name: str) -> float:
  """The seconds that the variable `name` gives, or the default.

  Raises:
    StrategyError: It is no number.
  """
  text = environment.get(name, str(DEFAULT))
  try:
    return float(text)
  except ValueError as error:
    raise errors.StrategyError(
      f'{name}={text!r} must be a number of seconds'
    ) from error


def within(seconds: float, function: Callable[[], _T]) -> _T:
  """What `function` returns, if it does in time.

  It must let other threads run while it waits. It cannot be called off: it goes
  on in a daemon thread, which keeps no process from ending.

  Raises:
    TimeoutError: It has not returned after so many seconds.
    BaseException: What it raised.
  """
  found: list[_T] = []
  failed: list[BaseException] = []

  def call() -> None:
    try:
      found.append(function())
    except BaseException as error:  # raised below, on the thread that asked
      failed.append(error)

  thread = threading.Thread(target=call, name='tftrain-deadline', daemon=True)
  thread.start()
  thread.join(seconds)
  if failed:
    raise failed[0]
  if not found:
    raise TimeoutError(f'no answer within {seconds:g} s')
  return found[0]

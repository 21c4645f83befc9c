"""Intervals: steps, times and epochs, as `100`, `'10m'` and `'2 epochs'`."""

from collections.abc import Sequence
import math
import re

from tftrain import errors

Interval = int | str
"""Steps, or a time such as '10m'."""

_UNITS = {'s': 1.0, 'm': 60.0, 'h': 3600.0}


def resolved(name: str, value: Interval, per_epoch: float | None) -> Interval:
  """Converts epochs to steps; returns steps and times unchanged, for `Every`.

  Args:
    name: Name of the Experiment's field, for errors.
    value: Steps (100), a time ('10m') or epochs ('2 epochs').
    per_epoch: Steps per epoch; None if unknown.

  Raises:
    ConfigError: If `value` is in epochs and `per_epoch` is None.
  """
  match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*epochs?', str(value).strip())
  if not match:
    return value
  if per_epoch is None:
    raise errors.ConfigError(
      f'Experiment.{name} = {value!r} needs data whose size is known; give a '
      'number of steps instead'
    )
  return max(1, round(float(match[1]) * per_epoch))


def all_resolved(
  name: str,
  value: Interval | Sequence[Interval],
  per_epoch: float | None,
) -> list[Interval]:
  values = [value] if isinstance(value, int | str) else value
  return [resolved(name, one, per_epoch) for one in values]


def in_steps(name: str, value: Interval, per_epoch: float | None) -> int:
  """Converts steps or epochs to steps.

  Raises:
    ConfigError: If `value` is a time or less than one step, or is in epochs
      and `per_epoch` is None.
  """
  steps = resolved(name, value, per_epoch)
  if not errors.is_count(steps):
    raise errors.ConfigError(
      f'Experiment.{name} = {steps!r} must be a number of steps of at least 1, '
      'or epochs'
    )
  return steps


def last_step(
  steps: int | None, epochs: float | None, per_epoch: float | None
) -> int:
  """Returns the last step of a run, from its steps or its epochs.

  Raises:
    ConfigError: If `steps` and `per_epoch` are None.
  """
  if steps is not None:
    return steps
  assert epochs is not None
  if per_epoch is None:
    raise errors.ConfigError(
      'Experiment.epochs needs data whose size is known; give steps instead'
    )
  return max(1, round(epochs * per_epoch))


def seconds(time_text: str) -> float:
  """Converts a time such as '90s', '10m' or '2h' to seconds.

  Raises:
    ConfigError: If `time_text` is not a time.
  """
  steps, found = parse(time_text)
  if steps is not None:
    raise errors.ConfigError(
      f"{time_text!r} is no time; give '30s', '10m' or '2h'"
    )
  return found


def parse(interval: Interval) -> tuple[int | None, float]:
  """Returns (steps or None, seconds or infinity) of an interval.

  Raises:
    ConfigError: If `interval` is neither steps nor a time.
  """
  if isinstance(interval, int) and not isinstance(interval, bool):
    if interval >= 1:
      return interval, math.inf
  elif isinstance(interval, str):
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([smh])', interval.strip())
    if match and float(match[1]) > 0:
      return None, float(match[1]) * _UNITS[match[2]]
  raise errors.ConfigError(
    f'the interval {interval!r} is neither a number of steps of at least 1 nor '
    "a time such as '30s', '10m' or '2h'"
  )

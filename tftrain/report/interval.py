"""Intervals of an Experiment: epochs become steps."""

from collections.abc import Sequence
import re

from tftrain import errors
from tftrain.report import every as every_lib


def resolved(
  name: str, value: every_lib.Interval, per_epoch: float | None
) -> every_lib.Interval:
  """Steps or a time, as `Every` takes them.

  Args:
    name: Of the Experiment's field, for errors.
    value: Steps (100), a time ('10m') or epochs ('2 epochs').
    per_epoch: Steps in an epoch, where that is known.
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
  value: every_lib.Interval | Sequence[every_lib.Interval],
  per_epoch: float | None,
) -> list[every_lib.Interval]:
  values = [value] if isinstance(value, int | str) else value
  return [resolved(name, one, per_epoch) for one in values]


def in_steps(
  name: str, value: every_lib.Interval, per_epoch: float | None
) -> int:
  """For what must be a number of steps."""
  steps = resolved(name, value, per_epoch)
  if not isinstance(steps, int) or steps < 1:
    raise errors.ConfigError(
      f'Experiment.{name} = {steps!r} must be a number of steps of at least 1, '
      'or epochs'
    )
  return steps


def last_step(
  steps: int | None, epochs: float | None, per_epoch: float | None
) -> int:
  """Where a run ends that is given steps or epochs."""
  if steps is not None:
    return steps
  assert epochs is not None
  if per_epoch is None:
    raise errors.ConfigError(
      'Experiment.epochs needs data whose size is known; give steps instead'
    )
  return max(1, round(epochs * per_epoch))

"""Validation of the values of an Experiment."""

from collections.abc import Iterable
from typing import Any

from tftrain import errors
from tftrain.actions import exporter as exporter_lib
from tftrain.checkpoint import retention
from tftrain.experiment import rewind as rewind_lib
from tftrain.experiment import warm_start
from tftrain.platform import files
from tftrain.report import interval
from tftrain.step import update as update_lib
from tftrain.task import task as task_lib

_CALLED = {'init_from': 'WarmStart', 'export': 'Export'}
_PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')


def check(recipe: Any, names: Iterable[str]) -> None:
  """Raises ConfigError if a value of an Experiment is invalid.

  Args:
    recipe: An Experiment.
    names: Names of its evaluation data.
  """
  for name, value in (('task', recipe.task), ('train_data', recipe.train_data)):
    if not callable(value) or isinstance(value, task_lib.Task):
      raise errors.ConfigError(
        f'Experiment.{name} is a {type(value).__name__}; give the function '
        'that makes it (in gin: @name, without parentheses)'
      )
  if (recipe.steps is None) == (recipe.epochs is None):
    raise errors.ConfigError(
      'Experiment needs either steps or epochs; '
      + ('it has neither' if recipe.steps is None else 'it has both')
    )
  for name in (
    'steps',
    'epochs',
    'overfit_batches',
    'limit_eval_batches',
    'max_traces',
  ):
    value = getattr(recipe, name)
    kinds: Any = int | float if name == 'epochs' else int
    if value is not None and (not isinstance(value, kinds) or value <= 0):
      raise errors.ConfigError(
        f'Experiment.{name} must be a positive number, got {value!r}'
      )
  if recipe.precision not in _PRECISIONS:
    raise errors.ConfigError(
      f'Experiment.precision = {recipe.precision!r}; choose one of '
      f'{", ".join(_PRECISIONS)}'
    )
  _check_kinds(recipe)
  if recipe.max_time is not None:
    interval.seconds(recipe.max_time)
  for name in names:
    files.check_name(name, 'Experiment.eval_data: the name')
  if not isinstance(recipe.seed, int) or not 0 <= recipe.seed < 2**32:
    raise errors.ConfigError(
      f'Experiment.seed must be between 0 and 2**32 - 1, got {recipe.seed!r}'
    )


def _check_kinds(recipe: Any) -> None:
  for name, kind in (
    ('update', update_lib.Update),
    ('best', retention.KeepBest),
    ('rewind', rewind_lib.Rewind),
    ('export', exporter_lib.Export | bool),
    ('init_from', warm_start.WarmStart | str),
  ):
    value = getattr(recipe, name)
    if value is not None and not isinstance(value, kind):
      called = _CALLED.get(name) or getattr(kind, '__name__', '')
      raise errors.ConfigError(
        f'Experiment.{name} is a {type(value).__name__}; give '
        f'tftrain.{called}(...) (in gin: @{called}(), with parentheses)'
      )

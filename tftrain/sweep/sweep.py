"""Sweep: the search space, search method and metric of a sweep."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from tftrain import errors
from tftrain.report import interval

SAMPLERS = ('tpe', 'gp', 'cmaes', 'qmc', 'nsgaii')
"""The samplers of Optuna, which use the results of earlier trials."""

_SEARCHES = ('grid', 'random', *SAMPLERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """The settings of a sweep.

  Attributes:
    space: Bindings to vary. A dict of choices is a grid; a list of dicts is a
      union, of which each trial takes one; a tuple as a key zips its bindings.
    metric: Metric to rank trials by: source/tag, such as `eval/test/accuracy`.
    goal: `max`, the default, or `min`.
    search: `grid`, the default, `random`, or a sampler of Optuna: `tpe`, `gp`,
      `cmaes`, `qmc`, `nsgaii`.
    num_trials: Number of assignments to draw; must be None for a grid.
    seeds: Values of Experiment.seed; each assignment is repeated with each.
    seed: Seed of the draws; by default 0.
    prune: Pruner, `@Asha()` or `@Median()`; by default None, no pruning.
    time_limit: Longest duration of one attempt at a trial, such as '2h'; by
      default None, no limit.
    max_kills: Number of kills by a signal in a row, without progress between
      them, at which a trial counts as failed; by default 5.
    lease_seconds: Seconds without a heartbeat after which another process takes
      a trial over; by default 60.
    grace_seconds: Seconds that a trial has to save after a stop signal, before
      it is killed; by default 60.
  """

  space: Any
  metric: str
  goal: str = 'max'
  search: str = 'grid'
  num_trials: int | None = None
  seeds: Sequence[int] | None = None
  seed: int = 0
  prune: Any = None
  time_limit: str | None = None
  max_kills: int = 5
  lease_seconds: float = 60.0
  grace_seconds: float = 60.0


def check(sweep: Sweep) -> None:
  """Raises ConfigError if a field of `sweep` is invalid."""
  for name, value, allowed in (
    ('goal', sweep.goal, ('max', 'min')),
    ('search', sweep.search, _SEARCHES),
  ):
    if value not in allowed:
      raise errors.ConfigError(
        f'Sweep.{name} = {value!r}; choose {", ".join(allowed)}'
      )
  if sweep.search == 'grid':
    if sweep.num_trials is not None:
      raise errors.ConfigError(
        f'Sweep.num_trials = {sweep.num_trials}, but a grid has all of its '
        "trials; leave it out, or set Sweep.search = 'random'"
      )
  elif sweep.num_trials is None or sweep.num_trials < 1:
    raise errors.ConfigError(
      f'Sweep.num_trials = {sweep.num_trials}; say how many trials '
      f'{sweep.search!r} is to make'
    )
  seeds = sweep.seeds
  if seeds is not None and (
    not seeds
    or any(type(seed) is not int or seed < 0 for seed in seeds)
    or len(set(seeds)) < len(seeds)
  ):
    raise errors.ConfigError(
      f'Sweep.seeds = {seeds!r}; give different whole numbers, such as '
      '[0, 1, 2]'
    )
  for name in ('max_kills', 'lease_seconds', 'grace_seconds'):
    if getattr(sweep, name) < 1:
      raise errors.ConfigError(
        f'Sweep.{name} = {getattr(sweep, name)}; give at least 1'
      )
  if sweep.time_limit is not None:
    interval.seconds(sweep.time_limit)

"""Sweep: the recipe of a sweep."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from tftrain import errors
from tftrain.report import interval

SAMPLERS = ('tpe', 'gp', 'cmaes', 'qmc', 'nsgaii')
"""What Optuna offers: these look at what came of earlier trials."""

_SEARCHES = ('grid', 'random', *SAMPLERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """What to vary, how, and by what to judge.

  Attributes:
    space: A dict of choices is a grid; a list of dicts a union, of which each
      trial takes one; a tuple as a key zips its bindings.
    metric: What to judge by: source/tag, such as `eval/test/accuracy`.
    goal: `max` or `min`.
    search: `grid`, `random`, or a sampler of Optuna: `tpe`, `gp`, `cmaes`,
      `qmc`, `nsgaii`.
    num_trials: How many assignments; a grid needs none.
    seeds: Each assignment is repeated with each of these as Experiment.seed.
    seed: Of what is drawn.
    prune: `@Asha()` or `@Median()`.
    time_limit: The longest a trial may take in one go, such as '2h'.
    max_kills: How often in a row a trial may be killed by a signal without
      having got further, before it counts as failed.
    lease_seconds: After how long without a heartbeat a trial is taken over.
    grace_seconds: How long a trial that is asked to stop has to save.
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
  """Raises ConfigError where a value makes no sense."""
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

"""Results of the trials of a sweep, read from their directories."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import time
from typing import Any

from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import pruner as pruner_lib

_STATUS = 'status.json'
PRUNED = 'pruned.json'
"""The file with the reason of a pruning; a trial that has it stays pruned."""


@dataclasses.dataclass(frozen=True)
class Result:
  """The present state and results of one trial.

  Attributes:
    trial: The trial as planned.
    directory: Directory of the trial.
    status: `pending`, `running`, `done`, `failed`, `diverged` or `pruned`.
    bindings: Lines of gin; None if they are not drawn yet.
    facts: Content of status.json: `seconds`, `attempts`, `error`, ...
    history: (step, value) of the sweep's metric, including non-finite values.
    holder: The process that runs the trial; '' if it is not running.
  """

  trial: plan_lib.Trial
  directory: pathlib.Path
  status: str
  bindings: Sequence[str] | None
  facts: Mapping[str, Any]
  history: Sequence[tuple[int, float]]
  holder: str = ''

  @property
  def seconds(self) -> float:
    """The run time of all attempts together."""
    total = float(self.facts.get('seconds', 0.0))
    if self.status == 'running' and 'started' in self.facts:
      total += max(0.0, time.time() - float(self.facts['started']))
    return total

  @property
  def step(self) -> int:
    """The newest step that has a value of the metric; 0 without one."""
    return self.history[-1][0] if self.history else 0

  def value(self, goal: str) -> float | None:
    """Returns the last value of the metric; None if there is no valid one.

    A diverged trial has the worst value, an infinity. A failed one has None.
    """
    if self.status == 'diverged':
      return -math.inf if goal == 'max' else math.inf
    if not self.history or self.status == 'failed':
      return None
    return self.history[-1][1]

  def metrics(self) -> list[dict[str, Any]]:
    """Returns all lines of the trial's metrics.jsonl."""
    return lines(self.directory)


def read(plan: plan_lib.Plan) -> list[Result]:
  """Returns the results of all trials of a sweep, by index."""
  seen = _lease_lib.read(plan.sweep_dir)
  return [read_one(plan, trial, seen.get(trial.index)) for trial in plan.trials]


def read_one(
  plan: plan_lib.Plan, trial: plan_lib.Trial, seen: _lease_lib.LeaseState | None
) -> Result:
  """Returns the result of one trial, given the state of its lease."""
  directory = plan.directory(trial)
  return Result(
    trial=trial,
    directory=directory,
    status=seen.state if seen else 'running',  # its file is being renamed
    bindings=trial.bindings or drawn(plan, trial),
    facts=facts(directory),
    history=history(lines(directory), plan.metric),
    holder=seen.who if seen and seen.state == 'running' else '',
  )


def best(found: Sequence[Result], goal: str) -> Result | None:
  """Returns the first trial of the best assignment; None before one is done.

  An assignment counts once the trials of all of its seeds are done. Its value
  is their mean.
  """
  points: dict[int, list[Result]] = {}
  for result in found:
    points.setdefault(result.trial.point, []).append(result)
  sums = {}
  for point, repeats in points.items():
    values = [r.value(goal) for r in repeats if r.status == 'done']
    if len(values) == len(repeats) and None not in values:
      mean = sum(v for v in values if v is not None) / len(values)
      sums[point] = pruner_lib.comparable(mean, goal)
  if not sums:
    return None
  return points[max(sums, key=lambda point: sums[point])][0]


def facts(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the content of a trial's status.json; {} if missing or corrupt."""
  path = directory / _STATUS
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def write_facts(directory: pathlib.Path, **changes: Any) -> None:
  """Updates a trial's status.json; a value of None removes its key."""
  now = {**facts(directory), **changes}
  kept = {key: value for key, value in now.items() if value is not None}
  files.write_json(directory / _STATUS, kept)


def overdue(plan: plan_lib.Plan) -> str:
  """Returns the error of a trial that exceeded Sweep.time_limit."""
  return f'it took longer than Sweep.time_limit = {plan.settings["time_limit"]}'


def drawn(plan: plan_lib.Plan, trial: plan_lib.Trial) -> list[str] | None:
  """Returns the bindings that a sampler drew for a trial; None before that."""
  path = drawn_path(plan, trial)
  if not path.exists():
    return None
  lines: list[str] = json.loads(path.read_text(encoding='utf-8'))['bindings']
  return lines


def drawn_path(plan: plan_lib.Plan, trial: plan_lib.Trial) -> pathlib.Path:
  return plan.sweep_dir / 'drawn' / f'{trial.point:04d}.json'


def lines(directory: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a trial's metrics.jsonl."""
  return jsonl.read(directory / 'metrics.jsonl')


def history(
  lines: Sequence[Mapping[str, Any]], metric: str
) -> list[tuple[int, float]]:
  """Returns (step, value) of a metric.

  JSON has NaN and the infinities as strings; `float` reads them.
  """
  source, _, tag = metric.rpartition('/')
  return [
    (int(values['step']), float(values[tag]))
    for values in lines
    if values.get('source') == source and tag in values
  ]


def written(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns the full names of all metrics in `lines`, sorted."""
  names = {
    f'{values.get("source")}/{tag}'
    for values in lines
    for tag in values
    if tag not in ('step', 'source')
  }
  return sorted(names)

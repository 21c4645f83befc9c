"""What came of the trials of a sweep, read from their directories."""

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
"""Why a trial was pruned; once it is there, the trial stays pruned."""


@dataclasses.dataclass(frozen=True)
class Result:
  """One trial as it is now.

  Attributes:
    trial: What was planned.
    directory: Where it lies.
    status: `pending`, `running`, `done`, `failed`, `diverged` or `pruned`.
    bindings: Lines of gin; None where they are not drawn yet.
    facts: What its status.json says: `seconds`, `attempts`, `error`, ...
    history: (step, value) of the sweep's metric, where it is finite or not.
    holder: Who runs it, if anybody does.
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
    """Time its processes took, all attempts together."""
    total = float(self.facts.get('seconds', 0.0))
    if self.status == 'running' and 'started' in self.facts:
      total += max(0.0, time.time() - float(self.facts['started']))
    return total

  @property
  def step(self) -> int:
    """The newest at which it reported the metric."""
    return self.history[-1][0] if self.history else 0

  def value(self, goal: str) -> float | None:
    """The last value of a trial that went to its end; worst if it diverged."""
    if self.status == 'diverged':
      return -math.inf if goal == 'max' else math.inf
    if not self.history or self.status == 'failed':
      return None
    return self.history[-1][1]

  def metrics(self) -> list[dict[str, Any]]:
    """All lines of its metrics.jsonl."""
    return lines(self.directory)


def read(plan: plan_lib.Plan) -> list[Result]:
  """All trials of a sweep, by index."""
  seen = _lease_lib.read(plan.sweep_dir)
  return [read_one(plan, trial, seen.get(trial.index)) for trial in plan.trials]


def read_one(
  plan: plan_lib.Plan, trial: plan_lib.Trial, seen: _lease_lib.Seen | None
) -> Result:
  """One trial of it, of which `seen` is known."""
  directory = plan.directory(trial)
  return Result(
    trial=trial,
    directory=directory,
    status=seen.state if seen else 'running',  # it is being renamed now
    bindings=trial.bindings or drawn(plan, trial),
    facts=facts(directory),
    history=history(lines(directory), plan.metric),
    holder=seen.who if seen and seen.state == 'running' else '',
  )


def best(found: Sequence[Result], goal: str) -> Result | None:
  """The trial that is done and has the best value, of which seeds count alike.

  Where there are several seeds, that of the best mean over all of them.
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
  """What a trial's status.json says; nothing if it is not there, or rotten."""
  path = directory / _STATUS
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def write_facts(directory: pathlib.Path, **changes: Any) -> None:
  """Changes what it says; None takes a fact away."""
  now = {**facts(directory), **changes}
  kept = {key: value for key, value in now.items() if value is not None}
  files.write_json(directory / _STATUS, kept)


def overdue(plan: plan_lib.Plan) -> str:
  """The error of a trial that took too long."""
  return f'it took longer than Sweep.time_limit = {plan.settings["time_limit"]}'


def drawn(plan: plan_lib.Plan, trial: plan_lib.Trial) -> list[str] | None:
  """The bindings that a sampler has drawn for a trial, if it has."""
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
  """(step, value) of a metric; NaN and the infinities are texts in JSON."""
  source, _, tag = metric.rpartition('/')
  return [
    (int(values['step']), float(values[tag]))
    for values in lines
    if values.get('source') == source and tag in values
  ]


def written(lines: Sequence[Mapping[str, Any]]) -> list[str]:
  """The full names of all metrics that occur."""
  names = {
    f'{values.get("source")}/{tag}'
    for values in lines
    for tag in values
    if tag not in ('step', 'source')
  }
  return sorted(names)

"""Optuna samplers: draw each trial from the results of earlier ones."""

from collections.abc import Mapping
import importlib.util
import json
from typing import Any
import warnings

from tftrain import errors
from tftrain.platform import files
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib
from tftrain.sweep import search_space

_BRANCH = 'branch'
_FURTHER = {'gp': 'torch', 'cmaes': 'cmaes'}
"""The packages that some samplers need besides Optuna."""


def draw(plan: plan_lib.Plan, trial: plan_lib.Trial) -> list[str]:
  """Returns the bindings of a trial, which are drawn once and then reused.

  Repeats of the trial with other seeds share its bindings.

  Raises:
    ConfigError: If Optuna is not installed.
  """
  known = results_lib.drawn(plan, trial)
  if known is not None:
    return known
  path = results_lib.drawn_path(plan, trial)
  files.make_directory(path.parent, 'sweep_dir')
  study, optuna = _study(plan, trial.point)
  _tell(study, optuna, plan)
  asked = study.ask()
  assignment = _draw_assignment(
    asked, search_space.from_facts(plan.settings['space'])
  )
  record = {
    'bindings': search_space.bindings(assignment),
    'optuna': asked.number,
  }
  with files.convert_os_errors(path):
    # If the process of another seed was faster, this draw stays unused.
    files.write_new(path, json.dumps(record) + '\n')
  made = results_lib.drawn(plan, trial)
  assert made is not None  # this process or another has written it
  return made


def check(search: str) -> None:
  """Checks that a sampler is installed.

  Raises:
    ConfigError: If Optuna, or a package that `search` needs, is not installed.
  """
  imported()
  package = _FURTHER.get(search, 'optuna')
  if importlib.util.find_spec(package) is None:
    raise errors.ConfigError(
      f'Sweep.search = {search!r} needs {package}, which is not installed; '
      f"pip install {package}, or take 'tpe'"
    )


def imported() -> Any:
  """Returns Optuna, an optional dependency that only this function imports.

  Raises:
    ConfigError: If Optuna is not installed.
  """
  try:
    import optuna
    from optuna.storages import journal
  except ImportError as error:
    raise errors.ConfigError(
      'Sweep.search asks for a sampler of Optuna, which is not installed; '
      "pip install 'tftrain[optuna]', or take 'random'"
    ) from error
  del journal  # imported to load optuna.storages.journal
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna


def _study(plan: plan_lib.Plan, point: int) -> tuple[Any, Any]:
  optuna = imported()
  backend = optuna.storages.journal.JournalFileBackend(
    str(plan.sweep_dir / 'optuna.journal')
  )
  study = optuna.create_study(
    storage=optuna.storages.JournalStorage(backend),
    sampler=_sampler(optuna, plan, point),
    study_name='sweep',
    direction='maximize' if plan.goal == 'max' else 'minimize',
    load_if_exists=True,
  )
  return study, optuna


def _sampler(optuna: Any, plan: plan_lib.Plan, point: int) -> Any:
  """Returns a sampler with a seed that differs between points.

  Each draw runs in its own process; one common seed would repeat the draws.
  """
  kinds = optuna.samplers
  kind = {
    'tpe': kinds.TPESampler,
    'gp': kinds.GPSampler,
    'cmaes': kinds.CmaEsSampler,
    'qmc': kinds.QMCSampler,
    'nsgaii': kinds.NSGAIISampler,
  }[plan.settings['search']]
  seed = int(plan.settings['seed'])
  # All points of a quasi-random sequence need the same seed.
  seed = seed if kind is kinds.QMCSampler else seed * 100_003 + point
  with warnings.catch_warnings():  # the interface may change
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    return kind(seed=seed)


def _tell(study: Any, optuna: Any, plan: plan_lib.Plan) -> None:
  """Reports the results of ended trials to the sampler."""
  states = optuna.trial.TrialState
  seen = _lease_lib.read(plan.sweep_dir)
  points: dict[int, list[plan_lib.Trial]] = {}
  for trial in plan.trials:
    points.setdefault(trial.point, []).append(trial)
  for repeats in points.values():
    path = results_lib.drawn_path(plan, repeats[0])
    over = all(
      trial.index in seen and seen[trial.index].state in _lease_lib.ENDED
      for trial in repeats
    )
    if not over or not path.exists():
      continue
    number = json.loads(path.read_text(encoding='utf-8'))['optuna']
    found = [results_lib.read_one(plan, t, seen[t.index]) for t in repeats]
    values = [r.value(plan.goal) for r in found]
    sound = [v for v in values if v is not None and abs(v) < float('inf')]
    if None in values or any(v != v for v in sound):
      study.tell(number, state=states.FAIL, skip_if_finished=True)
    elif len(sound) < len(values):  # diverged; PRUNED marks it as worst
      study.tell(number, state=states.PRUNED, skip_if_finished=True)
    else:
      mean = sum(sound) / len(sound)
      study.tell(number, mean, skip_if_finished=True)


def _draw_assignment(
  asked: Any, space: search_space.Space
) -> search_space.Assignment:
  branch = 0
  if len(space) > 1:
    branch = asked.suggest_categorical(_BRANCH, list(range(len(space))))
  found: dict[str, Any] = {}
  for dimension in space[branch]:
    # The same binding in another branch may have another range.
    key = f'{branch}/{"+".join(dimension.names)}'
    found.update(_suggest(asked, key, dimension))
  return found


def _suggest(
  asked: Any, key: str, dimension: search_space.Dimension
) -> Mapping[str, Any]:
  wide = dimension.range
  if wide is None:
    choices = list(range(len(dimension.choices)))
    return dimension.assign(
      dimension.choices[asked.suggest_categorical(key, choices)]
    )
  if wide.is_int:
    value = asked.suggest_int(
      key, int(wide.low), int(wide.high), log=wide.is_log
    )
    return {dimension.names[0]: value}
  value = asked.suggest_float(key, wide.low, wide.high, log=wide.is_log)
  rounded = max(wide.low, min(wide.high, float(f'{value:.6g}')))
  return {dimension.names[0]: rounded}

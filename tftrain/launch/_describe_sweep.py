"""Checks all trials of a sweep in one process, before any of them runs."""

from collections.abc import Iterator
from collections.abc import Sequence
import json
from typing import Any

import numpy as np

from tftrain import errors
from tftrain.config import gin_files as gin_files_lib
from tftrain.config import gin_parser
from tftrain.config import loader
from tftrain.config import registry
from tftrain.config import validator
from tftrain.platform import files
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import search_space
from tftrain.train import metrics

_BUILT = 16  # most kinds of trials to build


def described(sweep_dir: str) -> str:
  """Returns the description of a sweep, as one line of JSON.

  `trials` has index, steps and error (or null) of each; `metrics` the full
  names that a trial writes; `parameters` the number of trained weights.
  """
  plan = plan_lib.read(files.run_directory(sweep_dir))
  return json.dumps(describe(plan))


def describe(plan: plan_lib.Plan) -> dict[str, Any]:
  """Returns the description of a plan, after checks of its trials.

  Checks each trial's bindings by name, parameter and type. Builds one trial of
  each kind; trials of a kind bind the same names and refer to the same
  configurables.
  """
  registry.register()
  search_paths = list(plan.command['search_paths'])
  roots = gin_files_lib.roots(search_paths)
  text = gin_files_lib.of_file(str(plan.base), roots)
  base = list(gin_parser.read(text, roots))
  found: list[dict[str, Any]] = []
  kinds: dict[Any, dict[str, Any]] = {}
  for index, bindings in _trials(plan):
    trial: dict[str, Any] = {'index': index, 'error': None}
    found.append(trial)
    try:
      text = gin_files_lib.Text('\n'.join(bindings), gin_files_lib.BINDINGS)
      own = list(gin_parser.read(text, roots))
      validator.check([*base, *own])
      kind = _binding_key(own)
      if kind not in kinds and len(kinds) < _BUILT:
        kinds[kind] = _built(plan, bindings, search_paths)
      known = kinds.get(kind, {})
      trial['steps'] = _steps([*base, *own], known.get('steps'))
      trial['metrics'] = known.get('metrics', [])
    except errors.Error as error:
      trial['error'] = str(error).splitlines()[0]
  names = dict.fromkeys(n for known in kinds.values() for n in known['metrics'])
  sizes = [known['parameters'] for known in kinds.values()]
  _compare_metrics(found, plan.metric)
  return {
    'trials': found,
    'metrics': list(names),
    'parameters': max(sizes, default=None),
  }


def _compare_metrics(found: Sequence[dict[str, Any]], asked: str) -> None:
  """Adds an error to trials that lack the metric, if other trials write it."""
  lacking = []
  for trial in found:
    names = trial.pop('metrics', None)
    if names and not any(f'/{name}'.endswith(f'/{asked}') for name in names):
      lacking.append((trial, names))
  if len(lacking) < len(found):
    for trial, names in lacking:
      trial['error'] = (
        f'it never writes {asked}, which other trials do; it writes '
        f'{", ".join(names)}'
      )


def _trials(plan: plan_lib.Plan) -> Iterator[tuple[int, list[str]]]:
  """Yields (index, bindings) of each trial; for a sampler, of probes."""
  drawn = [trial for trial in plan.trials if trial.bindings is not None]
  for trial in drawn:
    yield trial.index, [*(trial.bindings or ()), *_seed(trial)]
  if not drawn:
    first = plan.trials[0]
    space = search_space.from_facts(plan.settings['space'])
    for index, probe in enumerate(search_space.probes(space)):
      yield index, [*search_space.bindings(probe), *_seed(first)]


def _seed(trial: plan_lib.Trial) -> list[str]:
  return [] if trial.seed is None else [f'Experiment.seed = {trial.seed}']


def _binding_key(own: Sequence[gin_parser.Statement]) -> tuple[Any, ...]:
  return tuple(
    (s.selector, s.parameter, repr(s.value) if '@' in repr(s.value) else '')
    for s in own
  )


def _built(
  plan: plan_lib.Plan, bindings: Sequence[str], search_paths: Sequence[str]
) -> dict[str, Any]:
  """Returns steps, metrics and size of a trial, by building all its parts."""
  registry.forget()
  experiment = loader.load([str(plan.base)], bindings, search_paths)
  with files.scratch_directory() as scratch:
    run = experiment.prepare(scratch / 'run', quiet=True)
    loader.check_used()
  trainer = run.trainer
  variables = trainer.task.all_variables()
  count = sum(int(np.prod(v.shape)) for v in variables if v.trainable)
  names = metrics.full_names(trainer.tags, run.evaluators)
  return {'steps': run.last_step, 'metrics': names, 'parameters': count}


def _steps(
  found: Sequence[gin_parser.Statement], built: int | None
) -> int | None:
  """Returns the bound value of Experiment.steps, or else `built`."""
  macros = {s.selector: s.value for s in found if s.is_macro}
  steps: Any = built
  for one in found:
    if (one.selector.rpartition('.')[2], one.parameter) == (
      'Experiment',
      'steps',
    ):
      steps = one.value
      if isinstance(steps, gin_files_lib.Reference):
        steps = macros.get(steps.name, built)
  return steps if isinstance(steps, int) else built

"""Planning: reads a sweep file, has the target check it, writes the plan."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import subprocess
from typing import Any

from tftrain import errors
from tftrain.config import gin_files as gin_files_lib
from tftrain.platform import files
from tftrain.sweep import _optuna_sampler
from tftrain.sweep import _sweep_file
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import search_space
from tftrain.sweep import sweep as sweep_lib

_SHOWN = 5
_SECONDS = 600  # timeout of the target's --mode=describe


def plan(
  sweep_file: str,
  sweep_dir: pathlib.Path,
  argv: Sequence[str],
  search_paths: Sequence[str] = (),
) -> Iterator[str]:
  """Plans a sweep; writes `sweep_dir` after all checks have passed.

  Args:
    sweep_file: Path of the gin file.
    sweep_dir: Directory to write.
    argv: Command of the target, which takes --sweep_dir and --trial_index.
    search_paths: Further directories to search for gin files and modules.

  Yields:
    Lines that summarize the plan.

  Raises:
    ConfigError: If the file, the space, a binding or the metric is invalid.
    RunDirectoryError: If `sweep_dir` holds a sweep or other files.
  """
  if plan_lib.exists(sweep_dir):
    raise errors.RunDirectoryError(
      f'{sweep_dir} holds a sweep already; tftrain-sweep run goes on with it, '
      'and another one needs another --sweep_dir'
    )
  paths = [os.path.abspath(path) for path in search_paths]
  roots = gin_files_lib.roots(paths)
  path = gin_files_lib.find(sweep_file, roots, '--sweep')
  read = _sweep_file.read(path, roots)
  sweep = read.sweep
  if sweep.search in sweep_lib.SAMPLERS:
    _optuna_sampler.check(sweep.search)
  trials = plan_lib.trials_of(sweep)
  parts: dict[str, Any] = {
    'sweep_text': gin_files_lib.text_of(path),
    'base': read.base,
    'settings': _settings(sweep, read.pruner),
    'command': {'argv': list(argv), 'cwd': os.getcwd(), 'search_paths': paths},
    'trials': trials,
  }
  with files.scratch_directory() as scratch:
    described = describe(plan_lib.write(scratch / 'sweep', **parts))
  _check_trials(described, trials)
  parts['settings']['metric'] = _metric(sweep.metric, described['metrics'])
  yield from _plan_lines(plan_lib.write(sweep_dir, **parts), described)


def describe(draft: plan_lib.Plan) -> dict[str, Any]:
  """Runs the target, which builds the trials and describes a plan.

  Returns:
    `trials`, `metrics` and `parameters`, as `launch` describes a sweep.

  Raises:
    ConfigError: If the target fails, or its output is not such a description.
  """
  argv = [
    *draft.command['argv'],
    '--mode=describe',
    '--format=json',
    f'--sweep_dir={draft.sweep_dir}',
  ]
  shown = ' '.join(draft.command['argv'])
  try:
    ended = subprocess.run(
      argv,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      errors='replace',
      timeout=_SECONDS,
      env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
  except OSError as error:
    raise errors.ConfigError(
      f'cannot start {shown!r}: {error.strerror}; give a command that runs '
      'here after --'
    ) from error
  except subprocess.TimeoutExpired as error:
    raise errors.ConfigError(
      f'{shown!r} has not described itself in {_SECONDS} s; does it know '
      '--mode=describe?'
    ) from error
  if ended.returncode:
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    line = next((text for text in said if text.startswith('error: ')), '')
    line = line.removeprefix('error: ') or (said[-1] if said else 'no message')
    raise errors.ConfigError(line.replace(str(draft.sweep_dir), 'the sweep'))
  try:
    found = json.loads(ended.stdout.splitlines()[-1])
    if set(found) >= {'trials', 'metrics'}:
      return dict(found)
  except (ValueError, IndexError, TypeError):
    pass
  raise errors.ConfigError(
    f'{shown!r} --mode=describe --format=json ends with no line of JSON that '
    'has trials and metrics; is it tftrain that it runs?'
  )


def _settings(
  sweep: sweep_lib.Sweep, pruner: pruner_lib.Pruner | None
) -> dict[str, Any]:
  return {
    **dataclasses.asdict(dataclasses.replace(sweep, space=None, prune=None)),
    'space': search_space.facts(search_space.parse(sweep.space)),
    'prune': pruner_lib.facts(pruner),
  }


def _check_trials(
  described: Mapping[str, Any], trials: Sequence[plan_lib.Trial]
) -> None:
  wrong = [one for one in described['trials'] if one.get('error')]
  if wrong:
    first = wrong[0]
    more = f' (and {len(wrong) - 1} more trials)' if len(wrong) > 1 else ''
    raise errors.ConfigError(
      f'trial {first["index"]} of {len(trials)}: {first["error"]}{more}'
    )


def _metric(asked: str, known: Sequence[str]) -> str:
  """Returns the full name of a metric; `asked` may be a unique suffix.

  Raises:
    ConfigError: If `asked` matches no metric, or more than one.
  """
  if asked in known:
    return asked
  found = [name for name in known if name.endswith(f'/{asked}')]
  if len(found) == 1:
    return found[0]
  said = 'may be any of' if found else 'is never written; there are'
  raise errors.ConfigError(
    f'Sweep.metric = {asked!r} {said} {", ".join(found or known)}'
  )


def _plan_lines(
  plan: plan_lib.Plan, described: Mapping[str, Any]
) -> Iterator[str]:
  count = len(plan.trials)
  many = f'{count} trials' if count > 1 else '1 trial'
  steps = [one.get('steps') for one in described['trials']]
  total = sum(n for n in steps if n)
  # A sampler has drawn no trials yet: `steps` are of sample assignments.
  if total and len(steps) != count:
    total = round(total / len(steps) * count)
  cost = f', {total:,} steps in all' if total else ''
  if total and plan.pruner:
    cost += ' if none is pruned'
  size = described.get('parameters')
  yield f'{many}{cost}' + (f', {size:,} parameters' if size else '')
  for trial in plan.trials[:_SHOWN]:
    yield f'  {trial.directory}'
  if count > _SHOWN:
    yield f'  ... and {count - _SHOWN} more'
  yield f'{plan.metric} decides, {plan.goal}imum wins'
  yield (
    f'Planned in {plan.sweep_dir}; next: tftrain-sweep run --sweep_dir='
    f'{plan.sweep_dir}'
  )

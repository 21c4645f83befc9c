"""The plan of a sweep: written once, read by all processes, never changed."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

from tftrain import errors
from tftrain.platform import files
from tftrain.platform import hashing
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import search_space
from tftrain.sweep import sweep as sweep_lib

_NAME_LENGTH = 60
_SETTINGS = 'sweep.json'
_PLAN = 'plan.jsonl'
_PLANNED = (_PLAN, 'base.gin')


@dataclasses.dataclass(frozen=True)
class Trial:
  """One line of the plan.

  Attributes:
    index: Number of the trial, from 0.
    point: Number of the assignment; repeats with other seeds share it.
    id: Digest of the assignment and the seed.
    directory: Name of the trial's directory, inside that of the sweep.
    bindings: Lines of gin; None if a sampler draws them when the trial starts.
    seed: Experiment.seed of the trial; None keeps that of the base.
  """

  index: int
  point: int
  id: str
  directory: str
  bindings: tuple[str, ...] | None
  seed: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """A planned sweep.

  Attributes:
    sweep_dir: Directory of the sweep.
    settings: The fields of Sweep, as JSON data.
    command: `argv`, `cwd` and `search_paths` of the target.
    trials: All trials, by index.
  """

  sweep_dir: pathlib.Path
  settings: Mapping[str, Any]
  command: Mapping[str, Any]
  trials: Sequence[Trial]

  @property
  def metric(self) -> str:
    return str(self.settings['metric'])

  @property
  def goal(self) -> str:
    return str(self.settings['goal'])

  @property
  def pruner(self) -> pruner_lib.Pruner | None:
    return pruner_lib.from_facts(self.settings['prune'])

  @property
  def base(self) -> pathlib.Path:
    return self.sweep_dir / 'base.gin'

  def directory(self, trial: Trial) -> pathlib.Path:
    return self.sweep_dir / trial.directory

  def trial(self, index: int) -> Trial:
    """Returns the trial with an index.

    Raises:
      ConfigError: If `index` is out of range.
    """
    if not 0 <= index < len(self.trials):
      raise errors.ConfigError(
        f'{self.sweep_dir} has trials 0 to {len(self.trials) - 1}, and no '
        f'trial {index}; give one of them as --trial_index'
      )
    return self.trials[index]


def trials_of(sweep: sweep_lib.Sweep) -> list[Trial]:
  """Returns all trials of a sweep; they depend on its file alone.

  Raises:
    ConfigError: If the space is invalid, or two trials are identical.
  """
  space = search_space.parse(sweep.space)
  drawn: Sequence[search_space.Assignment | None]
  if sweep.search == 'grid':
    drawn = search_space.grid(space)
  elif sweep.search == 'random':
    drawn = search_space.sample(space, sweep.num_trials or 0, sweep.seed)
  else:
    drawn = [None] * (sweep.num_trials or 0)
  seeds: Sequence[int | None] = sweep.seeds or [None]
  found: list[Trial] = []
  known: dict[str, int] = {}
  for point, assignment in enumerate(drawn):
    for seed in seeds:
      index = len(found)
      lines = (
        None if assignment is None else tuple(search_space.bindings(assignment))
      )
      said = lines or (f'{sweep.search} {point}',)
      identity = hashing.text_digest('\n'.join([*said, f'seed {seed}']))[:12]
      if identity in known:
        raise errors.ConfigError(
          f'Sweep.space: trials {known[identity]} and {index} are the same '
          f'({"; ".join(said)}); leave one of them out'
        )
      known[identity] = index
      name = _name(index, assignment or sweep.search, seed)
      found.append(Trial(index, point, identity, name, lines, seed))
  return found


def _name(
  index: int, assignment: search_space.Assignment | str, seed: int | None
) -> str:
  """Returns a directory name such as `0003_learning_rate=0.1_s0`.

  Programs use the index only; the rest is for people. The name has no
  characters that a shell would interpret.
  """
  parts = (
    [assignment]
    if isinstance(assignment, str)
    else [f'{k.rpartition(".")[2]}={v}' for k, v in assignment.items()]
  )
  plain = re.sub(r'[@%()\'"]', '', '_'.join(parts))
  readable = re.sub(r'[^A-Za-z0-9._=+-]+', '-', plain)
  readable = readable[:_NAME_LENGTH].strip('-.')
  end = '' if seed is None else f'_s{seed}'
  return files.check_name(f'{index:04d}_{readable}{end}', 'trial')


def write(
  sweep_dir: pathlib.Path,
  *,
  sweep_text: str,
  base: str,
  settings: Mapping[str, Any],
  command: Mapping[str, Any],
  trials: Sequence[Trial],
) -> Plan:
  """Writes a plan; the directory appears complete or not at all.

  Raises:
    RunDirectoryError: If `sweep_dir` holds other files or cannot be written.
  """
  lines = [json.dumps(dataclasses.asdict(trial)) + '\n' for trial in trials]
  texts = {'sweep.gin': sweep_text, 'base.gin': base, _PLAN: ''.join(lines)}
  with files.convert_os_errors(sweep_dir):
    with files.staged_directory(sweep_dir) as staged:
      files.make_directory(staged, 'sweep_dir')
      for name, text in texts.items():
        files.write_text(staged / name, text)
      files.write_json(staged / 'command.json', dict(command))
      digest = _plan_digest(settings, [texts[name] for name in _PLANNED])
      record = {'settings': dict(settings), 'digest': digest}
      files.write_json(staged / _SETTINGS, record)
      leases = staged / 'leases'
      files.make_directory(leases, 'sweep_dir')
      for trial in trials:
        files.write_bytes(leases / f'{trial.index:04d}.pending', b'')
  return Plan(sweep_dir, settings, command, trials)


def exists(sweep_dir: pathlib.Path) -> bool:
  """Returns whether `sweep_dir` holds a plan.

  Raises:
    RunDirectoryError: If `sweep_dir` holds other files and no plan.
  """
  if (sweep_dir / _SETTINGS).exists():
    return True
  if sweep_dir.exists() and (
    not sweep_dir.is_dir() or any(sweep_dir.iterdir())
  ):
    raise errors.RunDirectoryError(
      f'{sweep_dir} holds other things and no sweep; choose a --sweep_dir that '
      'is empty or does not exist'
    )
  return False


def read(sweep_dir: pathlib.Path) -> Plan:
  """Reads a plan.

  Raises:
    RunDirectoryError: If `sweep_dir` holds no plan, or its digest differs.
  """
  with files.convert_os_errors(sweep_dir):
    if not exists(sweep_dir):
      raise errors.RunDirectoryError(
        f'{sweep_dir} holds no sweep; make one with tftrain-sweep plan'
      )
    try:
      record = json.loads(_read_text(sweep_dir / _SETTINGS))
      settings = record['settings']
      texts = [_read_text(sweep_dir / name) for name in _PLANNED]
      same = record['digest'] == _plan_digest(settings, texts)
      trials = [_trial(json.loads(line)) for line in texts[0].splitlines()]
      command = json.loads(_read_text(sweep_dir / 'command.json'))
    except (ValueError, KeyError, TypeError) as error:
      raise _changed(sweep_dir) from error
  if not same:
    raise _changed(sweep_dir)
  return Plan(sweep_dir, settings, command, trials)


def _changed(sweep_dir: pathlib.Path) -> errors.RunDirectoryError:
  return errors.RunDirectoryError(
    f'{sweep_dir}: {_PLAN}, base.gin or {_SETTINGS} is not what was planned '
    '(its digest differs); put it back, or plan another sweep in another '
    '--sweep_dir'
  )


def _trial(values: dict[str, Any]) -> Trial:
  lines = values.pop('bindings')
  files.check_name(values['directory'], 'trial')
  return Trial(**values, bindings=None if lines is None else tuple(lines))


def _read_text(path: pathlib.Path) -> str:
  return path.read_text(encoding='utf-8')


def _plan_digest(settings: Mapping[str, Any], texts: Sequence[str]) -> str:
  return hashing.text_digest(
    '\0'.join([json.dumps(settings, sort_keys=True), *texts])
  )

"""Comparison of two runs: the first differing step and its likely causes.

Usage: python -m tftrain.debug.compare_runs RUN_A RUN_B

The comparison reads the files of the runs and needs no TensorFlow. Exit codes:
0 the same, 1 different, 2 cannot be compared.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

from tftrain import errors
from tftrain.platform import files
from tftrain.platform import jsonl

Record = Mapping[str, Any]
"""Contents of a run.json."""

_VERSIONS = ('python', 'tensorflow', 'keras')
_USAGE = 'usage: python -m tftrain.debug.compare_runs RUN_A RUN_B'
_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Difference:
  """Result of comparing two runs.

  Attributes:
    where: Line on the first step that differs; None if all are the same.
    compared: Line on the amount of compared data.
    causes: Line for each difference in config, code, data, versions, seed,
      replicas or devices.
  """

  where: str | None
  compared: str
  causes: Sequence[str]

  def __str__(self) -> str:
    lines = [f'different: {self.where}' if self.where else 'the same']
    lines += [f'compared: {self.compared}', *self.causes]
    if self.where and not self.causes:
      lines.append(
        'nothing else that is recorded differs: randomness without a seed, or '
        'additions in another order?'
      )
    return '\n'.join(lines)


def compare(one: str | pathlib.Path, other: str | pathlib.Path) -> Difference:
  """Compares two runs by the files in their directories.

  Args:
    one: The model_dir of a run.
    other: The model_dir of another run.

  Raises:
    RunDirectoryError: If a directory holds no run, or the runs have no step in
      common.
  """
  paths = pathlib.Path(one), pathlib.Path(other)
  records = [read(path) for path in paths]
  found: list[tuple[int, str]] = []
  compared = []
  for name, differ in (
    ('digests.jsonl', _digest_difference),
    ('metrics.jsonl', _metric_difference),
  ):
    first, second = (_lines_by_key(path / name) for path in paths)
    common = sorted(first.keys() & second.keys())
    if not common:
      continue
    compared.append(f'{len(common)} lines of {name}')
    wrong = [key for key in common if first[key] != second[key]]
    if wrong:
      key = wrong[0]
      known = f', in {name}{_before(key, common)}'
      found.append((key[0], differ(first[key], second[key]) + known))
  if not compared:
    raise errors.RunDirectoryError(
      f'{one} and {other} have no step in common in digests.jsonl or '
      'metrics.jsonl; train both, with the same log_every or Digests.every'
    )
  ends = [_end(path) for path in paths]
  if not found and ends[0] != ends[1]:
    shorter, longer = sorted(ends)
    found.append(
      (shorter, f'the same up to step {shorter}; only one goes on, to {longer}')
    )
  where = None
  if found:
    step, what = min(found)
    where = f'step {step}: {what}'
  causes = [*_configs(*paths), *facts(*records)]
  return Difference(where, ' and '.join(compared), causes)


def facts(one: Record, other: Record) -> Iterator[str]:
  """Yields a line per difference in code, data, versions, seed or devices."""
  yield from _code(one, other)
  yield from _data(one, other)
  for name in _VERSIONS:
    yield from _unequal(f'versions: {name}', *_both(one, other, name))
  for name in ('seed', 'replicas', 'devices'):
    yield from _unequal(name, *_both(one, other, name))


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the contents of the run.json in a directory.

  Raises:
    RunDirectoryError: If run.json is missing, unreadable or damaged.
  """
  record = path / 'run.json'
  with files.convert_os_errors(record):
    if not record.exists():
      raise errors.RunDirectoryError(
        f'{path} holds no run.json, so no run; give the model_dir of a run'
      )
    text = record.read_text(encoding='utf-8', errors='replace')
  try:
    found = json.loads(text)
  except ValueError:
    found = None
  if not isinstance(found, dict):
    raise errors.RunDirectoryError(
      f'{record} is damaged; start the run again with its command, which '
      'writes it anew'
    )
  return found


# Steps.

_Key = tuple[int, str]


def _lines_by_key(path: pathlib.Path) -> dict[_Key, dict[str, Any]]:
  """Returns (step, source) -> line."""
  return {
    (int(line['step']), str(line.get('source', ''))): line
    for line in jsonl.read(path)
  }


def _before(key: _Key, common: Sequence[_Key]) -> str:
  """Returns text on the last equal step before `key`."""
  steps = [step for step, _ in common if step < key[0]]
  return f' (equal up to step {steps[-1]})' if steps else ' (its first line)'


def _digest_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
  batches = one.get('batch'), other.get('batch')
  if None in batches:
    return 'the weights; whether the batch is the same is not known'
  if batches[0] == batches[1]:
    return 'the weights; the batch is the same'
  if one.get('weights') == other.get('weights'):
    return 'the batch; the weights are the same'
  return 'the batch, and the weights'


def _metric_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
  wrong = [
    f'{name} {_value_text(one.get(name))} -> {_value_text(other.get(name))}'
    for name in dict.fromkeys([*one, *other])
    if one.get(name) != other.get(name)
  ]
  more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
  return f'{one.get("source")}: {", ".join(wrong[:3])}{more}'


def _end(path: pathlib.Path) -> int:
  names = 'digests.jsonl', 'metrics.jsonl'
  steps = [step for name in names for step, _ in _lines_by_key(path / name)]
  return max(steps, default=0)


# Code, data and configuration.


def _both(one: Record, other: Record, name: str) -> tuple[Any, Any]:
  """Returns the values of a fact over the attempts of each run."""
  return _in_attempts(one, name), _in_attempts(other, name)


def _in_attempts(record: Record, name: str) -> list[Any]:
  attempts = record.get('attempts')
  attempts = [
    attempt for attempt in attempts or [] if isinstance(attempt, dict)
  ]
  values: list[Any] = []
  for value in [attempt.get(name, record.get(name)) for attempt in attempts]:
    if value not in values:
      values.append(value)
  return values or [record.get(name)]


def _unequal(what: str, one: Any, other: Any) -> Iterator[str]:
  if one != other:
    yield f'{what}: {_each(one)} -> {_each(other)}'


def _each(values: Any) -> str:
  return ', then '.join(_value_text(value) for value in values)


def _value_text(value: Any) -> str:
  if value is None:
    return 'unknown'
  text = value if isinstance(value, str) else json.dumps(value)
  return errors.brief(text, 80)


def _code(one: Record, other: Record) -> Iterator[str]:
  yield from _unequal(
    'code',
    *([_commit(git) for git in gits] for gits in _both(one, other, 'git')),
  )


def _commit(git: Any) -> str | None:
  if not isinstance(git, dict):
    return None
  commit = str(git.get('commit'))[:_SHOWN]
  if not git.get('dirty'):
    return commit
  return f'{commit} with changes {str(git.get("diff_sha256"))[:_SHOWN]}'


def _data(one: Record, other: Record) -> Iterator[str]:
  found = [values[-1] for values in _both(one, other, 'data')]
  known = [isinstance(value, dict) for value in found]
  if not all(known):
    said = [['recorded' if is_known else None] for is_known in known]
    yield from _unequal('data', *said)
    return
  first, second = found
  for source in dict.fromkeys([*first, *second]):
    if source not in first or source not in second:
      has = 'the first' if source in first else 'the second'
      yield f'data: only {has} has {source}'
      continue
    for name in dict.fromkeys([*first[source], *second[source]]):
      values = [[part[source].get(name)] for part in found]
      yield from _unequal(f'data: {source}: {name}', *values)


_BINDING = re.compile(r'([\w./]+) *= *(.*)')


def _configs(one: pathlib.Path, other: pathlib.Path) -> Iterator[str]:
  first, second = (_bindings(path / 'config.gin') for path in (one, other))
  if first is None and second is None:
    return
  if first is None or second is None:
    yield f'config: only {other if first is None else one} has a config.gin'
    return
  for name in sorted(first.keys() | second.keys()):
    if first.get(name) != second.get(name):
      values = [b.get(name, 'not set') for b in (first, second)]
      old, new = (errors.brief(value, 80) for value in values)
      yield f'config: {name}: {old} -> {new}'


def _bindings(path: pathlib.Path) -> dict[str, str] | None:
  """Returns binding -> value; gin indents continuation lines."""
  with files.convert_os_errors(path):
    if not path.exists():
      return None
    text = path.read_text(encoding='utf-8', errors='replace')
  found: dict[str, str] = {}
  name = ''
  for line in text.splitlines():
    match = _BINDING.match(line)
    if match:
      name = match[1]
      found[name] = match[2].rstrip('\\').strip()
    elif name and line[:1].isspace():
      more = line.rstrip('\\').strip()
      found[name] = f'{found[name]} {more}'.strip()
  return found


def main(arguments: Sequence[str]) -> int:
  """Returns 0 for the same, 1 for different, 2 for what cannot be compared."""
  if len(arguments) != 2 or arguments[0].startswith('-'):
    print(_USAGE, file=sys.stderr)
    return 2
  try:
    found = compare(*arguments)
  except errors.Error as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(found)
  return 1 if found.where else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

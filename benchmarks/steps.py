"""Benchmark of a training step: tftrain and other ways to write the loop.

  python benchmarks/steps.py --model=mlp
  python benchmarks/steps.py --model=all --json=all.json --chart=all.png

All contestants train the same model on the same digits, taking turns, so that a
busy machine slows all of them; compare the ratios. They share one process, but
for JAX, which has its own. docs/benchmarks.md describes the contestants and the
timing.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import gc
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging
import keras
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import step_chart
from benchmarks import step_contestants as contestants_lib
from benchmarks import step_workloads as workloads

ALL = 'all'

_MODEL = flags.DEFINE_enum(
  'model',
  'mlp',
  [*workloads.WORKLOADS, ALL],
  'What to train; all: one after another, each in a process of its own.',
)
_STEPS = flags.DEFINE_integer(
  'steps', None, 'Steps in a timed window; a multiple of 100.', lower_bound=100
)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 7, 'How often each contestant is timed.', lower_bound=1
)
_WARM_UP = flags.DEFINE_integer(
  'warm_up', 300, 'Steps before the first round.', lower_bound=100
)
_SHARED_INPUT = flags.DEFINE_bool(
  'shared_input', True, "Whether tftrain also runs on the others' tf.data."
)
_ONLY = flags.DEFINE_list(
  'only', None, 'Contestants to run besides tftrain; default: all.'
)
_JAX_PYTHON = flags.DEFINE_string(
  'jax_python', sys.executable, 'The Python that has JAX and optax.'
)
_JSON = flags.DEFINE_string('json', None, 'File for every number measured.')
_CHART = flags.DEFINE_string('chart', None, 'PNG file for a chart of ratios.')

flags.register_validator(
  'steps',
  lambda steps: not (steps or 0) % contestants_lib.BLOCK,
  'not a multiple of 100',
)
flags.register_validator(
  'warm_up',
  lambda steps: not steps % contestants_lib.BLOCK,
  'not a multiple of 100',
)

# Ratios are taken to these contestants: name -> short name.
BASES = {
  contestants_lib.TFTRAIN: 'tftrain',
  contestants_lib.TFTRAIN_BLOCK: 'block',
}

# What a table shows of the last metrics, where contestants have it.
_COLUMNS = {'loss': 'loss', 'accuracy': 'acc', 'critic': 'critic'}


def chosen(model: str) -> dict[str, contestants_lib.Maker]:
  """Returns name -> maker of each contestant that the flags choose."""
  others = contestants_lib.others(model, _JAX_PYTHON.value)
  names = {name.replace(', ', '_'): name for name in others}
  only = _ONLY.value or list(names)
  if set(only) - set(names):
    raise app.UsageError(f'--only takes some of {", ".join(names)}')
  ours = {
    name: make
    for name, make in contestants_lib.OURS.items()
    if name in BASES or _SHARED_INPUT.value
  }
  wanted = [names[key] for key in names if key in only]
  return {**ours, **{name: others[name] for name in wanted}}


def make_all(
  makers: Mapping[str, contestants_lib.Maker],
  workload: workloads.Workload,
  directory: pathlib.Path,
) -> tuple[dict[str, contestants_lib.Contestant], dict[str, str]]:
  """Makes the contestants; each takes its first block of steps.

  Returns:
    Name -> contestant, and name -> error of those that failed.
  """
  runs, failed = {}, {}
  for name, make in makers.items():
    try:
      run = make(workload, directory)
      run(contestants_lib.BLOCK)
    except contestants_lib.LeftOut as reason:
      print(f'without {name}: {reason}')
    except Exception as error:
      traceback.print_exc()
      failed[name] = f'{type(error).__name__}: {error}'
    else:
      runs[name] = run
  return runs, failed


def measure(
  runs: Mapping[str, contestants_lib.Contestant], steps: int, rounds: int
) -> tuple[dict[str, list[float]], dict[str, workloads.Scalars]]:
  """Times the contestants in turns, a different one first each round.

  Returns:
    Name -> microseconds per step in each round, and name -> last metrics.
  """
  names = list(runs)
  times: dict[str, list[float]] = {name: [] for name in names}
  scalars = {}
  for turn in range(rounds):
    first = turn % len(names)
    for name in names[first:] + names[:first]:
      gc.collect()
      begun = time.perf_counter()
      scalars[name] = runs[name](steps)
      seconds = time.perf_counter() - begun
      seconds = scalars[name].get('seconds', seconds)
      times[name].append(seconds / steps * 1e6)
  return times, scalars


def ratios(
  times: Mapping[str, Sequence[float]], name: str, base: str
) -> list[float]:
  """Returns the step time of `name` divided by that of `base`, per round."""
  return [a / b for a, b in zip(times[name], times[base], strict=True)]


def table(
  times: Mapping[str, Sequence[float]],
  scalars: Mapping[str, workloads.Scalars],
  *,
  bases: Mapping[str, str] = BASES,
  early: Mapping[str, workloads.Scalars] | None = None,
) -> Iterable[str]:
  """Yields the lines of the table, one per contestant.

  Args:
    times: Name -> microseconds per step in each round.
    scalars: Name -> last metrics.
    bases: What ratios are taken to: name -> short name.
    early: Name -> metrics after the warm-up; None leaves their loss out.
  """
  bases = {base: short for base, short in bases.items() if base in times}
  columns = [key for key in _COLUMNS if key in next(iter(scalars.values()))]
  head = f'{"":26} {"us/step":>8}'
  head += ''.join(f' {"/ " + s:>12} {"range":>11}' for s in bases.values())
  head += f' {"early loss":>10}' if early else ''
  yield head + ''.join(f' {_COLUMNS[key]:>6}' for key in columns)
  for name, values in times.items():
    line = f'{name:26} {statistics.median(values):8.1f}'
    for base in bases:
      found = ratios(times, name, base)
      span = f'{min(found):.2f}-{max(found):.2f}'
      line += f' {statistics.median(found):12.2f} {span:>11}'
    line += f' {early[name]["loss"]:10.3f}' if early else ''
    yield line + ''.join(f' {scalars[name][key]:6.3f}' for key in columns)


def numbers(
  times: Mapping[str, Sequence[float]],
  scalars: Mapping[str, workloads.Scalars],
  early: Mapping[str, workloads.Scalars],
) -> dict[str, Any]:
  """Returns the numbers of the table and of each round, for JSON."""
  return {
    name: {
      'microseconds_per_step': statistics.median(values),
      **{
        f'ratio_to_{short}': statistics.median(ratios(times, name, base))
        for base, short in BASES.items()
        if base in times
      },
      'rounds': values,
      'early_loss': early[name]['loss'],
      **{key: scalars[name][key] for key in _COLUMNS if key in scalars[name]},
    }
    for name, values in times.items()
  }


def settings(workload: workloads.Workload, steps: int) -> dict[str, Any]:
  """Returns the settings and the environment of the benchmark."""
  devices = tf.config.list_logical_devices()
  return {
    'model': workload.title,
    'batch_size': workload.batch_size,
    'steps': steps,
    'rounds': _ROUNDS.value,
    'warm_up': _WARM_UP.value,
    'python': platform.python_version(),
    'tensorflow': tf.__version__,
    'keras': keras.__version__,
    'machine': platform.machine(),
    'cores': os.cpu_count(),
    'devices': [device.name for device in devices],
  }


def run_model(model: str) -> dict[str, Any]:
  """Prints the table of one model and returns its numbers."""
  workload = workloads.WORKLOADS[model]
  steps = _STEPS.value or workload.steps
  ran = settings(workload, steps)
  print(', '.join(f'{key} {value}' for key, value in ran.items()), flush=True)
  with tempfile.TemporaryDirectory() as directory:
    # In two passes: while one is made and traced, TensorFlow forgets what it
    # has compiled of the others, and would do it again in the first round.
    path = pathlib.Path(directory)
    runs, failed = make_all(chosen(model), workload, path)
    early = {name: run(_WARM_UP.value) for name, run in runs.items()}
    times, scalars = measure(runs, steps, _ROUNDS.value)
  print('\n'.join(table(times, scalars, early=early)), flush=True)
  found = numbers(times, scalars, early)
  return {**ran, 'contestants': found, 'failed': failed}


def run_all() -> dict[str, Any]:
  """Runs this program once for each model; returns model -> its numbers."""
  reports = {}
  with tempfile.TemporaryDirectory() as directory:
    for model in workloads.WORKLOADS:
      path = pathlib.Path(directory, f'{model}.json')
      command = [sys.executable, __file__, *sys.argv[1:]]
      command += [f'--model={model}', f'--json={path}', '--chart=']
      subprocess.run(command, check=False)
      if path.exists():
        reports[model] = json.loads(path.read_text(encoding='utf-8'))
      else:
        reports[model] = {'contestants': {}, 'failed': {model: 'it ended'}}
      print(flush=True)
  return reports


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'what is {argv[1]!r}?')
  if _CHART.value and not importlib.util.find_spec('matplotlib'):
    raise app.UsageError('--chart needs matplotlib: pip install matplotlib')
  logging.set_verbosity(logging.WARNING)  # Orbit logs each loop
  model = _MODEL.value
  chosen(model)  # refuses a wrong --only
  if model == ALL:
    report = reports = run_all()
  else:
    for gpu in tf.config.list_physical_devices('GPU'):  # leaves some to JAX
      tf.config.experimental.set_memory_growth(gpu, True)
    report = run_model(model)
    reports = {model: report}
  if _JSON.value:
    text = json.dumps(report, indent=2) + '\n'
    pathlib.Path(_JSON.value).write_text(text, encoding='utf-8')
  if _CHART.value:
    step_chart.draw(reports, list(BASES), _CHART.value)
  failed = [
    f'{model}: {name}: {error}'
    for model, each in reports.items()
    for name, error in each['failed'].items()
  ]
  if failed:
    sys.exit('failed:\n' + '\n'.join(failed))


if __name__ == '__main__':
  app.run(main)

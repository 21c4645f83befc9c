"""Sweeps planned in this process."""

import json

from tests.support import paths
from tests.support import sweep_commands
from tftrain.platform import jsonl
from tftrain.sweep import _sweep_file
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import search_space

GRID = "Sweep.space = {'LR': [0.1, 0.2]}\n"


def planned(directory, text):
  """A plan without asking a target."""
  path = sweep_commands.write(
    directory, f"Sweep.metric = 'eval/test/accuracy'\n{text}"
  )
  read = _sweep_file.read(path, [paths.ROOT, paths.ROOT / 'configs'])
  settings = {
    'metric': read.sweep.metric,
    'goal': read.sweep.goal,
    'search': read.sweep.search,
    'seed': read.sweep.seed,
    'space': search_space.facts(search_space.parse(read.sweep.space)),
    'prune': pruner_lib.facts(read.pruner),
    'time_limit': read.sweep.time_limit,
    'max_kills': read.sweep.max_kills,
    'lease_seconds': read.sweep.lease_seconds,
    'grace_seconds': read.sweep.grace_seconds,
  }
  return plan_lib.write(
    directory / 'sweep',
    sweep_text=path.read_text(),
    base=read.base,
    settings=settings,
    command={'argv': ['true'], 'cwd': str(directory), 'search_paths': []},
    trials=plan_lib.trials_of(read.sweep),
  )


def refused(*arguments):
  code, out, err = sweep_commands.sweep(*arguments)
  assert code == 2 and not out
  (line,) = err.splitlines()
  return line


def write_metrics(directory, values):
  for step, value in values:
    line = {'step': step, 'source': 'eval/test', 'accuracy': value}
    jsonl.append_line(directory / 'metrics.jsonl', json.dumps(line))


DIGITS = """
  include 'digits.gin'
  Experiment.export = False
  Experiment.log_every = 10
  Experiment.eval_every = 10
  STEPS = 20
"""

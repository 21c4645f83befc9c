"""Two worker processes that train together, and their files."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import paths
from tftrain.checkpoint import format
from tftrain.distribute import cluster_resolver
from tftrain.distribute import local_launcher

GIN = """
import tests.support.recipes

Experiment.task = @recipes.make_normalized_task
Experiment.train_data = @recipes.train_data
Experiment.eval_data = @recipes.test_data
Experiment.steps = 40
Experiment.log_every = 10
Experiment.eval_every = 20
Experiment.checkpoint_every = 20
Experiment.keep = 9
Experiment.export = False
"""


class Team:
  """Two workers on one model_dir.

  Args:
    commands: Starts them.
    directory: Where the configuration and the model_dir lie.
    *arguments: For both.
    others: For the second alone.
  """

  def __init__(self, commands, directory, *arguments, others=()):
    self.model_dir = directory / 'run'
    workers = f'--workers={",".join(local_launcher.free_addresses(2))}'
    common = [*command(directory), workers, *arguments]
    self.chief = commands.start(*common, '--task_index=0')
    self.other = commands.start(*common, '--task_index=1', *others)

  def wait(self):
    """Both have to be waited for, whatever becomes of the first."""
    return self.chief.wait(), self.other.wait()

  def until_step(self, step):
    self.chief.until(lambda: has_reported(self.model_dir, step), f'step {step}')


def printed_by_two(module, *arguments):
  """Runs a module as two workers; returns the JSON that each of them prints."""
  addresses = tuple(local_launcher.free_addresses(2))
  workers = []
  for task in range(2):
    cluster = cluster_resolver.Cluster(addresses, task, 'test')
    workers.append(
      subprocess.Popen(
        [sys.executable, '-m', module, *arguments],
        env={**os.environ, 'TF_CONFIG': cluster.tf_config()},
        stdout=subprocess.PIPE, text=True, cwd=paths.ROOT,
      )
    )  # fmt: skip
  try:
    texts = [worker.communicate(timeout=200)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  assert [worker.returncode for worker in workers] == [0, 0]
  return [json.loads(text) for text in texts]


def has_reported(model_dir, step):
  path = model_dir / 'metrics.jsonl'
  return path.exists() and f'"step": {step},' in path.read_text()


def alone(commands, directory, *arguments, **options):
  """The same run in one process."""
  return commands.run(*command(directory), *arguments, **options)


def command(directory):
  """What all runs of a directory begin with."""
  path = directory / 'a.gin'
  if not path.exists():
    directory.mkdir(exist_ok=True)
    path.write_text(GIN)
  return [f'--gin_file={path}', f'--model_dir={directory}/run']


def bind(*bindings):
  return [f'--gin.{b.replace(" = ", "=")}' for b in bindings]


def assert_ended(ended, *codes):
  assert tuple(e.code for e in ended) == codes, '\n'.join(
    e.stderr for e in ended
  )


def lines(directory):
  text = (directory / 'run' / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def saved_steps(directory):
  return format.committed_steps(directory / 'run' / 'checkpoints')


def last_state(directory):
  """Name -> value of the newest checkpoint."""
  path = directory / 'run' / 'checkpoints'
  return format.read_checkpoint(
    format.checkpoint_path(path, saved_steps(directory)[-1])
  )[1]


def assert_same_metrics(one, other):
  assert len(one) == len(other)
  for mine, theirs in zip(one, other, strict=True):
    assert mine['source'] == theirs['source']
    ours, expected = (
      {k: v for k, v in line.items() if k != 'source'}
      for line in (mine, theirs)
    )
    assert ours == pytest.approx(expected, abs=1e-6, rel=2e-6)

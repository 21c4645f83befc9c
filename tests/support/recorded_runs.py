"""Runs that write digests and run.json, and gin files to repeat them."""

import json

import tensorflow as tf

from tests.support import small_tasks
import tftrain


def train_data():
  return tftrain.Arrays(small_tasks.arrays(), 8)


def test_data():
  return tftrain.Arrays(small_tasks.arrays(seed=1), 8, training=False)


def experiment(**changes):
  fields = {
    'task': small_tasks.supervised,
    'train_data': train_data,
    'eval_data': test_data,
    'steps': 6,
    'log_every': 2,
    'eval_every': 3,
    'checkpoint_every': 3,
    'export': False,
    **changes,
  }
  return tftrain.Experiment(**fields)


def record(model_dir):
  return json.loads((model_dir / 'run.json').read_text())


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


class At(tftrain.Action):
  """Does something at one step."""

  needs_scalars = False
  place = 1

  def __init__(self, step, act):
    self._step, self._act = step, act

  def next_due(self, step):
    return self._step if step < self._step else None

  def __call__(self, report):
    if report.step == self._step:
      self._act()


def cursor_data():
  x, y = small_tasks.arrays()
  return tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'y': y}),
    8,
    filter=lambda example: example['x'][0] > 0,
    select=('x', 'y'),
  )


def dataset():
  return tf.data.Dataset.from_tensor_slices(small_tasks.arrays()).batch(8)


def write_run(path, life, config='', lines=('{"step": 1, "source": "train"}',)):
  path.mkdir()
  (path / 'run.json').write_text(json.dumps({'attempts': [life]}))
  (path / 'config.gin').write_text(config)
  (path / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in lines))
  return path


GIN = """
import tests.support.recipes

Experiment.task = @recipes.make_task
Experiment.train_data = @recipes.train_data
Experiment.eval_data = {
  'test': @recipes.test_data,
  'small': @small/recipes.test_data,
}
small/recipes.test_data.batch_size = 4
Experiment.steps = %STEPS
STEPS = 4
Experiment.log_every = 2
Experiment.export = False
Experiment.actions = [@Digests()]
Digests.every = 2
recipes.make_task.optimizer = @Adam
Adam.learning_rate = 0.01
"""


def first_run(commands, tmp_path, *more):
  path = tmp_path / 'recipe.gin'
  path.write_text(GIN)
  run = tmp_path / 'old'
  ended = commands.run(f'--gin_file={path}', f'--model_dir={run}', *more)
  assert ended.code == 0, ended
  path.unlink()
  return run

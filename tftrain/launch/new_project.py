"""python -m tftrain.launch.new_project NAME: a project that trains, to be changed."""

from collections.abc import Sequence
import importlib.util
import keyword
import pathlib
import re
import string
import sys

from tftrain import errors
from tftrain.platform import files

_USAGE = """usage: python -m tftrain.launch.new_project NAME

Makes the directory NAME: a task, data, a configuration, a test and a README.
"""

_DATA = '''"""Points on two spirals, and which spiral each is on."""

import gin
import numpy as np

import tftrain


def load(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Points `[examples, 2]` and labels `[examples]`, 0 or 1."""
  random = np.random.RandomState(seed)
  labels = random.randint(0, 2, examples)
  turns = random.uniform(0.25, 1.25, examples)
  angle = 2 * np.pi * turns + labels * np.pi
  points = np.stack([np.cos(angle), np.sin(angle)], -1) * turns[:, None]
  points += random.normal(scale=0.03, size=points.shape)
  return points.astype('float32'), labels.astype('int64')


@gin.register(module='$name')
def data(
  batch_size: int = 32,
  examples: int = 2000,
  seed: int = 0,
  training: bool = True,
) -> tftrain.Arrays:
  return tftrain.Arrays(load(examples, seed), batch_size, training=training)
'''

_TASK = '''"""What is learned: a model, its loss, its optimizer, its metrics."""

from collections.abc import Callable

import gin
import keras

import tftrain


@gin.register(module='$name')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  units: int = 32,
) -> tftrain.SupervisedTask:
  model = keras.Sequential(
    [
      keras.Input((2,)),
      keras.layers.Dense(units, 'relu'),
      keras.layers.Dense(units, 'relu'),
      keras.layers.Dense(2),
    ]
  )
  return tftrain.SupervisedTask(
    model,
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    optimizer=optimizer(),
    metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
  )
'''

_CONFIG = """# Which of two spirals a point is on; held-out accuracy above 0.99.
#
# Required: nothing.
# Commonly changed: STEPS, BATCH_SIZE, LEARNING_RATE, as --gin.STEPS=500.

import $name.data
import $name.task

STEPS = 1000
BATCH_SIZE = 32
LEARNING_RATE = 0.01

Experiment:
  task = @$name.make_task
  train_data = @train/$name.data
  eval_data = {'test': @eval/$name.data}
  steps = %STEPS
  log_every = 100
  eval_every = 500

$name.make_task.optimizer = @Adam
Adam.learning_rate = %LEARNING_RATE

train/$name.data.batch_size = %BATCH_SIZE
eval/$name.data:
  batch_size = 100
  examples = 1000
  seed = 1
  training = False
"""

_TEST = '''"""The task learns, and the configuration trains."""

import pathlib

from $name import data
from $name import task
from tftrain import config
from tftrain import testing

_ROOT = pathlib.Path(__file__).parent


def test_the_task_learns_a_batch_by_heart():
  testing.assert_learns(task.make_task, data.data(), steps=500)


def test_the_configuration_trains(tmp_path):
  fewer = ['STEPS = 500', 'Experiment.export = False']
  experiment = config.load([str(_ROOT / '$name.gin')], fewer)
  result = experiment.train(tmp_path / 'run')
  assert result.scalars['eval/test/accuracy'] > 0.95
'''

_README = """# $name

Tells on which of two spirals a point is.

    python -m tftrain --gin_file=$name.gin --model_dir=/tmp/$name
    python -m tftrain --gin_file=$name.gin --mode=describe
    python -m pytest

- `$name/data.py`: where examples come from. Begin here.
- `$name/task.py`: the model, its loss, its optimizer and its metrics.
- `$name.gin`: the values of a run; `--gin.STEPS=500` changes one.
- `${name}_test.py`: that it learns.
"""

_FILES = {
  'README.md': _README,
  '$name.gin': _CONFIG,
  '${name}_test.py': _TEST,
  '$name/__init__.py': '"""Which of two spirals a point is on."""\n',
  '$name/data.py': _DATA,
  '$name/task.py': _TASK,
}


def make(name: str, parent: pathlib.Path) -> pathlib.Path:
  """Makes a project; all of its directory is there, or nothing.

  Args:
    name: Of the project, its directory, its package and its gin file.
    parent: Where the directory is made.

  Raises:
    ConfigError: The name is none that Python could import.
    RunDirectoryError: Something of that name is there.
  """
  directory = parent / name
  _check_name(name)
  if directory.exists() or directory.is_symlink():
    raise errors.RunDirectoryError(
      f'{directory} is there already; choose another name, or remove it'
    )
  files.make_directory(parent, 'directory')
  with files.explained(directory), files.staged_directory(directory) as staged:
    files.make_directory(staged / name)
    for path, text in _FILES.items():
      named = string.Template(path).substitute(name=name)
      content = string.Template(text).substitute(name=name)
      files.write_text(staged / named, content)
  return directory


def _check_name(name: str) -> None:
  if not re.fullmatch(r'[a-z][a-z0-9_]{0,40}', name) or keyword.iskeyword(name):
    raise errors.ConfigError(
      f'{name!r} cannot name a project; give up to 41 lower-case letters, '
      'digits or underscores, a letter first, and no word of Python'
    )
  found = importlib.util.find_spec(name)
  if name in sys.stdlib_module_names or (found and found.origin):
    raise errors.ConfigError(
      f'{name!r} is a module that Python has already; choose another name'
    )


def main(arguments: Sequence[str]) -> int:
  """Returns 0, or 2 for a name that cannot be taken."""
  if len(arguments) != 1 or arguments[0].startswith('-'):
    print(_USAGE, file=sys.stderr)
    return 2
  (name,) = arguments
  try:
    made = make(name, pathlib.Path())
  except errors.Error as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code
  print(f'Made {made}/. Next:')
  print(f'  cd {made}')
  print(f'  python -m tftrain --gin_file={name}.gin --model_dir=/tmp/{name}')
  print('  python -m pytest')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

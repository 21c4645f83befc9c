"""Tuning: what is measured, what is chosen, and that nothing is left."""

import time

import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.debug import tuning


def experiment(data, **options):
  return tftrain.Experiment(
    small_tasks.supervised, data, steps=10, export=False, **options
  )


def examples():
  features = dict(zip('xy', small_tasks.arrays(), strict=True))
  source = tftrain.data.InMemory(features)
  return tftrain.data.Examples(source, 8, select=('x', 'y'))


@pytest.mark.slow
def test_each_setting_is_measured_and_the_best_is_written(tmp_path):
  found = tftrain.debug.tune(
    experiment(examples), seconds=2.0, batch_sizes=(4, 16)
  )
  names = [row.name for row in found.candidates]
  assert names[:3] == [
    'as configured',
    "Update.jit = 'off'",
    "Update.jit = 'block'",
  ]
  for setting in ('Examples.prefetch = 8', 'Examples.threads = 1'):
    assert any(setting in name for name in names), names
  rows = [*found.candidates, *found.batch_sizes]
  assert all(row.step_seconds > 0 and row.compile_seconds > 0 for row in rows)
  assert [row.batch_size for row in found.batch_sizes] == [4, 16]
  assert len(found.table().splitlines()) == len(rows) + 2
  path = tmp_path / 'tuned.gin'
  tuning.write(found, str(path))
  lines = path.read_text().splitlines()
  assert set(lines) >= {f'{name} = {v!r}' for name, v in found.best.items()}
  assert sum('another training' in line for line in lines) == 2


class Sleepy(tftrain.Arrays):
  """Arrays of which each batch takes 10 ms, unless `prefetch` is 8."""

  def __init__(self, prefetch=2):
    super().__init__(small_tasks.arrays(), 8)
    self._prefetch = prefetch

  def options(self):
    return {'prefetch': self._prefetch}

  def with_options(self, prefetch):
    return Sleepy(prefetch)

  def batch(self, seed, step):
    return None

  def row_numbers(self, *args):
    return None

  def dataset(self, seed, start_step=0):
    dataset = super().dataset(seed, start_step)
    if self._prefetch == 8:
      return dataset

    def sleep(x, y):
      slept = tf.py_function(lambda: time.sleep(0.01), [], [])
      with tf.control_dependencies([slept]):
        return tf.identity(x), y

    return dataset.map(sleep)


@pytest.mark.slow
def test_the_fast_setting_is_chosen():
  update = tftrain.Update(jit='off', clip_norm=1.0)
  found = tuning.tune(experiment(Sleepy, update=update), seconds=2.0)
  assert found.best['Sleepy.prefetch'] == 8
  assert found.candidates[0].step_seconds > 0.01
  assert 'Sleepy.prefetch = 8' in found.gin()
  assert 'Experiment.update' not in found.gin()  # it would lose clip_norm


@pytest.mark.slow
def test_data_that_end_are_begun_anew():
  batches = [small_tasks.arrays(8)] * 3
  data = lambda: tftrain.data.DatasetPipeline(batches, repeat=False)
  found = tuning.tune(experiment(data), seconds=2.0)
  base, *_ = found.candidates
  assert base.step_seconds > 1e-6


@pytest.mark.slow
def test_what_cannot_be_is_a_line_of_the_table():
  found = tuning.tune(experiment(examples, strategy='mirrored'), seconds=1.0)
  (failed,) = [row for row in found.candidates if row.step_seconds is None]
  assert failed.settings == {'Update.jit': 'block'}
  assert 'one replica' in found.table()
  assert any('Experiment.bucket_mb' in row.name for row in found.candidates)


def test_what_it_cannot_do_is_refused():
  data = lambda: tf.data.Dataset.from_tensors(small_tasks.arrays(8))
  with error_lines.refused(
    errors.ConfigError, 'DatasetPipeline takes no batch size'
  ):
    tuning.tune(experiment(data), batch_sizes=[4])
  with error_lines.refused(errors.ConfigError, 'ends in .gin'):
    tuning.check_output('tuned.txt')


_GIN = """
import tests.support.recipes
Experiment.task = @recipes.make_task
Experiment.train_data = @recipes.train_data
Experiment.steps = 10
"""


@pytest.mark.slow
def test_the_mode_writes_what_the_command_takes(commands, tmp_path):
  config = tmp_path / 'config.gin'
  config.write_text(_GIN)
  tuned = tmp_path / 'tuned.gin'
  tune = [
    f'--gin_file={config}',
    '--mode=tune',
    '--tune_seconds=3',
    f'--output={tuned}',
  ]
  ended = commands.run(*tune, '--tune_batch_sizes=8,x')
  assert ended.code == 2 and 'give whole numbers' in ended.error
  running = commands.start(*tune)
  running.until(lambda: _uses_processor(running.pid), 'its work')
  running.send('SIGINT')
  assert running.wait().code != 0
  assert [path.name for path in tmp_path.iterdir()] == ['config.gin']
  ended = commands.run(*tune, '--tune_batch_sizes=16')
  assert ended.code == 0, ended
  assert 'Best: ' in ended.stdout and "Update.jit = 'block'" in ended.stdout
  ended = commands.run(
    f'--gin_file={config}',
    f'--gin_file={tuned}',
    f'--model_dir={tmp_path / "run"}',
  )
  assert ended.code == 0, ended


def _uses_processor(pid):
  """Whether a process has worked for two seconds: it is in the tuning."""
  with open(f'/proc/{pid}/stat') as file:
    fields = file.read().rpartition(')')[2].split()
  return int(fields[11]) > 200

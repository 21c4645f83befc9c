"""The planner: grids, random trials, and plans that are refused."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.support import paths
from tests.support import planned_sweeps
from tests.support import sweep_commands
from tftrain import errors
from tftrain.config import gin_files as gin_files_lib
from tftrain.platform import _filesystem
from tftrain.platform import files
from tftrain.sweep import _sweep_file
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import trial as trial_lib


def _bindings(directory, text):
  return [
    trial.bindings for trial in planned_sweeps.planned(directory, text).trials
  ]


def test_the_controller_imports_no_tensorflow():
  code = (
    'import sys, tftrain.sweep.__main__, tftrain.sweep.trial; '
    "print([m for m in ('tensorflow', 'keras', 'optuna') if m in sys.modules])"
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, cwd=paths.ROOT
  )
  assert found.stdout == b'[]\n', found.stderr


def test_a_grid_has_all_combinations_and_a_union_all_of_its_parts(tmp_path):
  assert _bindings(
    tmp_path,
    """
    Sweep.space = [
      {'T.optimizer': [@Adam(), @SGD], 'A.x': [1, None]},
      {('B.y', 'LAYERS'): [(1, [2]), (3, [4, 4])]}]
    """,
  ) == [
    ('T.optimizer = @Adam()', 'A.x = 1'),
    ('T.optimizer = @Adam()', 'A.x = None'),
    ('T.optimizer = @SGD', 'A.x = 1'),
    ('T.optimizer = @SGD', 'A.x = None'),
    ('B.y = 1', 'LAYERS = [2]'),
    ('B.y = 3', 'LAYERS = [4, 4]'),
  ]


@pytest.mark.parametrize(
  ('name', 'count'), [('digits_lr', 12), ('digits_optimizers', 14)]
)
def test_the_sweeps_that_ship_can_be_planned(name, count):
  roots = gin_files_lib.roots([])
  path = gin_files_lib.find(f'sweeps/{name}.gin', roots, '--sweep')
  read = _sweep_file.read(path, roots)
  assert len(plan_lib.trials_of(read.sweep)) == count


_RANDOM = """
  Sweep.space = {'A.x': 'log_uniform(1e-5, 1e-2)', 'B.y': 'int(1, 3)'}
  Sweep.search = 'random'
  Sweep.num_trials = 30
"""


def test_random_trials_are_a_function_of_file_and_seed(tmp_path):
  first, again, other = (tmp_path / name for name in 'abc')
  for directory in (first, again, other):
    directory.mkdir()
  drawn = _bindings(first, _RANDOM)
  assert drawn == _bindings(again, _RANDOM)
  assert drawn != _bindings(other, f'{_RANDOM}\nSweep.seed = 1')
  values = [float(x.split(' = ')[1]) for x, _ in drawn]
  assert all(1e-5 <= value <= 1e-2 for value in values)
  # A third of them in each of three decades; not so if drawn evenly.
  assert 4 <= sum(value < 1e-4 for value in values) <= 17
  assert {y for _, y in drawn} == {'B.y = 1', 'B.y = 2', 'B.y = 3'}


def test_each_assignment_is_repeated_with_each_seed(tmp_path):
  plan = planned_sweeps.planned(
    tmp_path, f'{planned_sweeps.GRID}Sweep.seeds = [3, 5]'
  )
  assert [(t.point, t.seed) for t in plan.trials] == [
    (0, 3),
    (0, 5),
    (1, 3),
    (1, 5),
  ]
  assert len({t.id for t in plan.trials}) == 4
  assert plan.trials[3].directory == '0003_LR=0.2_s5'


def test_the_base_is_the_rest_of_the_file_with_what_it_includes(tmp_path):
  plan = planned_sweeps.planned(
    tmp_path,
    "include 'digits.gin'\nSTEPS = 7\nfoo/A.x = [@b/C(), %D]\n"
    f'{planned_sweeps.GRID}',
  )
  lines = plan.base.read_text().splitlines()
  assert lines[0] == 'import examples.digits'
  assert lines[-2:] == ['STEPS = 7', 'foo/A.x = [@b/C(), %D]']
  assert 'Experiment.task = @digits.make_task' in lines
  assert not [line for line in lines if 'Sweep' in line or 'include' in line]
  assert len([line for line in lines if line.startswith('STEPS')]) == 1


def test_no_value_leads_a_name_out_of_the_directory(tmp_path):
  plan = planned_sweeps.planned(
    tmp_path, "Sweep.space = {'A.x': ['../../etc/passwd', '/']}"
  )
  for trial in plan.trials:
    path = plan.directory(trial)
    assert path.resolve().parent == plan.sweep_dir.resolve()


_BAD = {
  'no sweep': ('STEPS = 3', 'binds nothing of Sweep'),
  'no metric': (planned_sweeps.GRID, 'Sweep.metric is required'),
  'typo': ("Sweep.metrik = 'a/b'", "no parameter 'metrik'; did you mean 'metr"),
  'type': (
    f'{planned_sweeps.GRID}Sweep.metric = 3',
    'Sweep.metric = 3 is int, expected str',
  ),
  'goal': (
    f"{planned_sweeps.GRID}Sweep.metric = 'a/b'\nSweep.goal = 'up'",
    'choose max, min',
  ),
  'seed varied': (
    "Sweep.metric = 'a/b'\nSweep.space = {'Experiment.seed': [1, 2]}",
    'is no hyperparameter',
  ),
  'same twice': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': [1, 2, 1]}",
    'trials 0 and 2 are the same (A.x = 1)',
  ),
  'twice in one': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': [1], ('A.x', 'y'): [(1, 2)]}",
    'varies A.x twice',
  ),
  'one value': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': 3}",
    'give a list of choices, or a range',
  ),
  'no range': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': 'normal(0, 1)'}",
    'is no range; write uniform(low, high)',
  ),
  'wrong way round': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': 'uniform(1, 0)'}",
    'give two numbers, the lower one first',
  ),
  'log of nothing': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': 'log_uniform(0, 1)'}",
    'numbers above 0',
  ),
  'range in a grid': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': 'uniform(0, 1)'}",
    "set Sweep.search = 'random'",
  ),
  'not to be written': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': [1e999]}",
    "'inf' is not a gin value",
  ),
  'a name that is none': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x = 1; B': [1]}",
    'names no parameter',
  ),
  'zip of unequal': (
    "Sweep.metric = 'a/b'\nSweep.space = {('A.x', 'B'): [(1, 2), (3,)]}",
    '(3,) is not 2 values',
  ),
  'more than there are': (
    "Sweep.metric = 'a/b'\nSweep.space = {'A.x': [1, 2]}\n"
    "Sweep.search = 'random'\nSweep.num_trials = 3",
    'about 2 different trials',
  ),
  'no count': (
    f"{planned_sweeps.GRID}Sweep.metric = 'a/b'\nSweep.search = 'tpe'",
    'say how many trials',
  ),
  'pruner without steps': (
    f"{planned_sweeps.GRID}Sweep.metric = 'a/b'\nSweep.prune = @Asha()",
    'Asha.min_steps is required',
  ),
  'pruner unused': (
    f"{planned_sweeps.GRID}Sweep.metric = 'a/b'\nMedian.min_steps = 3",
    'Median has no effect; set Sweep.prune = @Median()',
  ),
  'limit': (
    f"{planned_sweeps.GRID}Sweep.metric = 'a/b'\nSweep.time_limit = 'long'",
    "the interval 'long' is neither",
  ),
  'includes itself': (
    f"include 'sweep.gin'\n{planned_sweeps.GRID}",
    'includes itself',
  ),
}


@pytest.mark.parametrize('text, message', _BAD.values(), ids=_BAD)
def test_a_sweep_that_cannot_be_is_refused(tmp_path, text, message):
  path = sweep_commands.write(tmp_path, text)
  with pytest.raises(errors.ConfigError) as raised:
    read = _sweep_file.read(path, [tmp_path])
    plan_lib.trials_of(read.sweep)
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)


@pytest.mark.slow
def test_plan_refuses_what_it_would_destroy_and_metrics_that_are_none(tmp_path):
  path = sweep_commands.write(
    tmp_path, f"{planned_sweeps.GRID}Sweep.metric = 'accuracy'"
  )
  sweep_dir = tmp_path / 'sweep'
  command = (
    'plan',
    f'--sweep={path}',
    f'--sweep_dir={sweep_dir}',
    '--',
    *sweep_commands.TARGET,
  )
  assert planned_sweeps.refused(*command) == (
    "error: Sweep.metric = 'accuracy' may be any of train/accuracy, "
    'eval/test/accuracy'
  )
  sweep_commands.write(
    tmp_path, f"{planned_sweeps.GRID}Sweep.metric = 'eval/test/f1'"
  )
  assert 'is never written; there are train/loss, ' in planned_sweeps.refused(
    *command
  )
  assert not sweep_dir.exists()
  sweep_dir.mkdir()
  (sweep_dir / 'thesis.tex').write_text('mine')
  assert 'holds other things and no sweep' in planned_sweeps.refused(*command)
  assert os.listdir(sweep_dir) == ['thesis.tex']
  (sweep_dir / 'thesis.tex').unlink()
  sweep_commands.write(tmp_path, f"{planned_sweeps.GRID}Sweep.metric = 'loss'")
  code, out, _ = sweep_commands.sweep(*command)
  assert code == 0 and '2 trials, 8 steps in all' in out
  assert 'train/loss decides' in out  # unique, so it may be short
  assert 'holds a sweep already' in planned_sweeps.refused(*command)


@pytest.mark.parametrize('name', ['plan.jsonl', 'base.gin', 'sweep.json'])
def test_a_plan_edited_by_hand_is_refused(tmp_path, name):
  plan = planned_sweeps.planned(
    tmp_path, f'STEPS = 4\n{planned_sweeps.GRID}Sweep.seeds = [4]'
  )
  assert plan_lib.read(plan.sweep_dir).trials == plan.trials
  path = plan.sweep_dir / name
  path.write_text(path.read_text().replace('4', '5', 1))
  with pytest.raises(errors.RunDirectoryError, match='its digest differs'):
    plan_lib.read(plan.sweep_dir)


class _FullDisk(_filesystem.Disk):
  def write(self, path, content):
    if content:
      raise OSError(28, 'No space left on device')
    super().write(path, content)


def test_a_full_disk_leaves_no_half_plan_and_no_end_unnoted(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(files, 'disk', _FullDisk())
  with pytest.raises(errors.RunDirectoryError, match='No space left'):
    planned_sweeps.planned(tmp_path, planned_sweeps.GRID)
  assert os.listdir(tmp_path) == ['sweep.gin']
  monkeypatch.undo()
  plan = planned_sweeps.planned(tmp_path, planned_sweeps.GRID)

  def work(trial):
    planned_sweeps.write_metrics(trial.directory, [(1, 0.5)])
    monkeypatch.setattr(files, 'disk', _FullDisk())
    return 0

  assert trial_lib.run(plan.sweep_dir, 0, work) == 0
  assert sweep_commands.states(plan.sweep_dir) == ['done', 'pending']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--trial_index=0'], '--sweep_dir is missing'),
    (['--sweep_dir=x'], '--trial_index is missing'),
    (['--sweep_dir=x', '--trial_index=0', '--model_dir=y'], 'leave it out'),
    (['--sweep_dir=x', '--trial_index=0', '--mode=eval'], 'trains it'),
    (
      ['--sweep_dir=x', '--trial_index=0', '--preempt_exit_code=0'],
      'would make a trial that was stopped look done',
    ),
    (['--sweep_dir=x', '--trial_index=0', '--local_workers=2'], 'one process'),
    (['--sweep_dir=/nowhere', '--trial_index=0'], 'holds no sweep'),
  ],
)
def test_flags_that_do_not_go_together(commands, arguments, message):
  ended = commands.run(*arguments)
  assert ended.code == 2 and message in ended.error


def test_gin_texts_are_found_with_a_hint():
  with pytest.raises(errors.ConfigError, match=r'did you mean .*digits_lr.gin'):
    gin_files_lib.find(
      'digits_lt.gin', [pathlib.Path(paths.ROOT / 'configs')], '--sweep'
    )

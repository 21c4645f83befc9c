"""Sweeps: what is planned, how trials run, and what is survived."""

import importlib.util
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests import sweeping
from tftrain import errors
from tftrain.config import gin_files as gin_files_lib
from tftrain.distribute import cluster_resolver
from tftrain.platform import _filesystem
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.platform import resource_slots
from tftrain.report import report as report_lib
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import _optuna_sampler
from tftrain.sweep import _sweep_file
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import results as results_lib
from tftrain.sweep import search_space
from tftrain.sweep import trial as trial_lib

_GRID = "Sweep.space = {'LR': [0.1, 0.2]}\n"


def _planned(directory, text):
  """A plan without asking a target."""
  path = sweeping.write(
    directory, f"Sweep.metric = 'eval/test/accuracy'\n{text}"
  )
  read = _sweep_file.read(path, [sweeping.ROOT, sweeping.ROOT / 'configs'])
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


def _bindings(directory, text):
  return [trial.bindings for trial in _planned(directory, text).trials]


# What is planned.


def test_the_controller_imports_no_tensorflow():
  code = (
    'import sys, tftrain.sweep.__main__, tftrain.sweep.trial; '
    "print([m for m in ('tensorflow', 'keras', 'optuna') if m in sys.modules])"
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, cwd=sweeping.ROOT
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
  plan = _planned(tmp_path, f'{_GRID}Sweep.seeds = [3, 5]')
  assert [(t.point, t.seed) for t in plan.trials] == [
    (0, 3),
    (0, 5),
    (1, 3),
    (1, 5),
  ]
  assert len({t.id for t in plan.trials}) == 4
  assert plan.trials[3].directory == '0003_LR=0.2_s5'


def test_the_base_is_the_rest_of_the_file_with_what_it_includes(tmp_path):
  plan = _planned(
    tmp_path,
    f"include 'digits.gin'\nSTEPS = 7\nfoo/A.x = [@b/C(), %D]\n{_GRID}",
  )
  lines = plan.base.read_text().splitlines()
  assert lines[0] == 'import examples.digits'
  assert lines[-2:] == ['STEPS = 7', 'foo/A.x = [@b/C(), %D]']
  assert 'Experiment.task = @digits.make_task' in lines
  assert not [line for line in lines if 'Sweep' in line or 'include' in line]
  assert len([line for line in lines if line.startswith('STEPS')]) == 1


def test_no_value_leads_a_name_out_of_the_directory(tmp_path):
  plan = _planned(tmp_path, "Sweep.space = {'A.x': ['../../etc/passwd', '/']}")
  for trial in plan.trials:
    path = plan.directory(trial)
    assert path.resolve().parent == plan.sweep_dir.resolve()


_BAD = {
  'no sweep': ('STEPS = 3', 'binds nothing of Sweep'),
  'no metric': (_GRID, 'Sweep.metric is required'),
  'typo': ("Sweep.metrik = 'a/b'", "no parameter 'metrik'; did you mean 'metr"),
  'type': (f'{_GRID}Sweep.metric = 3', 'Sweep.metric = 3 is int, expected str'),
  'goal': (
    f"{_GRID}Sweep.metric = 'a/b'\nSweep.goal = 'up'",
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
    f"{_GRID}Sweep.metric = 'a/b'\nSweep.search = 'tpe'",
    'say how many trials',
  ),
  'pruner without steps': (
    f"{_GRID}Sweep.metric = 'a/b'\nSweep.prune = @Asha()",
    'Asha.min_steps is required',
  ),
  'pruner unused': (
    f"{_GRID}Sweep.metric = 'a/b'\nMedian.min_steps = 3",
    'Median has no effect; set Sweep.prune = @Median()',
  ),
  'limit': (
    f"{_GRID}Sweep.metric = 'a/b'\nSweep.time_limit = 'long'",
    "the interval 'long' is neither",
  ),
  'includes itself': (f"include 'sweep.gin'\n{_GRID}", 'includes itself'),
}


@pytest.mark.parametrize('text, message', _BAD.values(), ids=_BAD)
def test_a_sweep_that_cannot_be_is_refused(tmp_path, text, message):
  path = sweeping.write(tmp_path, text)
  with pytest.raises(errors.ConfigError) as raised:
    read = _sweep_file.read(path, [tmp_path])
    plan_lib.trials_of(read.sweep)
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)


def _refused(*arguments):
  code, out, err = sweeping.sweep(*arguments)
  assert code == 2 and not out
  (line,) = err.splitlines()
  return line


def test_plan_refuses_what_it_would_destroy_and_metrics_that_are_none(tmp_path):
  path = sweeping.write(tmp_path, f"{_GRID}Sweep.metric = 'accuracy'")
  sweep_dir = tmp_path / 'sweep'
  command = (
    'plan',
    f'--sweep={path}',
    f'--sweep_dir={sweep_dir}',
    '--',
    *sweeping.TARGET,
  )
  assert _refused(*command) == (
    "error: Sweep.metric = 'accuracy' may be any of train/accuracy, "
    'eval/test/accuracy'
  )
  sweeping.write(tmp_path, f"{_GRID}Sweep.metric = 'eval/test/f1'")
  assert 'is never written; there are train/loss, ' in _refused(*command)
  assert not sweep_dir.exists()
  sweep_dir.mkdir()
  (sweep_dir / 'thesis.tex').write_text('mine')
  assert 'holds other things and no sweep' in _refused(*command)
  assert os.listdir(sweep_dir) == ['thesis.tex']
  (sweep_dir / 'thesis.tex').unlink()
  sweeping.write(tmp_path, f"{_GRID}Sweep.metric = 'loss'")
  code, out, _ = sweeping.sweep(*command)
  assert code == 0 and '2 trials, 8 steps in all' in out
  assert 'train/loss decides' in out  # unique, so it may be short
  assert 'holds a sweep already' in _refused(*command)


@pytest.mark.parametrize('name', ['plan.jsonl', 'base.gin', 'sweep.json'])
def test_a_plan_edited_by_hand_is_refused(tmp_path, name):
  plan = _planned(tmp_path, f'STEPS = 4\n{_GRID}Sweep.seeds = [4]')
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
    _planned(tmp_path, _GRID)
  assert os.listdir(tmp_path) == ['sweep.gin']
  monkeypatch.undo()
  plan = _planned(tmp_path, _GRID)

  def work(trial):
    _write(trial.directory, [(1, 0.5)])
    monkeypatch.setattr(files, 'disk', _FullDisk())
    return 0

  assert trial_lib.run(plan.sweep_dir, 0, work) == 0
  assert sweeping.states(plan.sweep_dir) == ['done', 'pending']


# How trials run.


def test_all_trials_run_and_the_same_command_touches_nothing(tmp_path):
  sweep_dir = sweeping.plan(tmp_path, _GRID)
  code, out, _ = sweeping.run(sweep_dir, '--parallel=2')
  assert code == 0
  assert '2 done, best eval/test/accuracy 0.8 (0001_LR=0.2)' in out

  def stamps():
    return {
      path: path.stat().st_mtime_ns
      for path in sweep_dir.rglob('*')
      if path.name != '.lock' and path != sweep_dir / 'leases'
    }

  before = stamps()
  assert before
  code, out, _ = sweeping.run(sweep_dir)
  assert code == 0 and stamps() == before
  code, out, _ = sweeping.sweep('status', f'--sweep_dir={sweep_dir}')
  assert out.startswith('2 done, best')
  first, second = results_lib.read(plan_lib.read(sweep_dir))
  assert first.status == 'done' and first.bindings == ('LR = 0.1',)
  assert second.history == [
    (1, 0.2),
    (2, 0.4),
    (3, 0.6000000000000001),
    (4, 0.8),
  ]
  assert second.metrics()[0]['source'] == 'eval/test'
  assert 0 < second.seconds < 60
  assert (second.directory / 'log.txt').exists()


def test_what_fails_fails_alone_and_is_tried_again_on_request(tmp_path):
  sweep_dir = sweeping.plan(
    tmp_path, "Sweep.space = {'DO': ['fail', '', 'nan', 'other metric']}"
  )
  code, out, _ = sweeping.run(sweep_dir)
  assert code == 1
  assert sweeping.states(sweep_dir) == ['failed', 'done', 'diverged', 'failed']
  assert 'DO=fail: ConfigError: no such thing in 1 ways' in out
  assert (
    'the metric eval/test/accuracy was never written to '
    f'{sweep_dir}/0003_DO=other-metric/metrics.jsonl; written were '
    'eval/test/loss'
  ) in out
  done = sweep_dir / '0001_DO=' / 'status.json'
  before = done.read_text()
  mended = {'MENDED': str(done)}
  assert sweeping.run(sweep_dir, env=mended)[0] == 1
  assert sweeping.states(sweep_dir)[0] == 'failed'  # nobody asked for it
  code, out, _ = sweeping.run(sweep_dir, '--retry=failed', env=mended)
  assert 'Again: 2 trials' in out
  assert sweeping.states(sweep_dir) == ['done', 'done', 'diverged', 'failed']
  assert done.read_text() == before
  found = results_lib.read(plan_lib.read(sweep_dir))
  assert found[0].facts['attempts'] == 2 and 'error' not in found[0].facts
  assert (
    found[2].value('max') == -math.inf and found[2].value('min') == math.inf
  )


@pytest.mark.slow
def test_three_equal_failures_in_a_row_stop_the_sweep(tmp_path):
  sweep_dir = sweeping.plan(
    tmp_path,
    """
    DO = 'fail'
    Sweep.space = {'LR': [1, 2, 3, 4, 5]}
    """,
  )
  code, _, err = sweeping.run(sweep_dir)
  (line,) = err.splitlines()
  assert code == 2
  assert line.startswith(
    'error: three trials in a row failed alike (ConfigError: no such thing in 1'
    ' ways); mend that, then run with --retry=failed; see '
  )
  assert sweeping.states(sweep_dir) == ['failed'] * 3 + ['pending'] * 2
  code, _, err = sweeping.run(sweep_dir, '--keep_going')
  assert sweeping.states(sweep_dir) == ['failed'] * 5


@pytest.mark.slow
def test_what_hangs_or_dies_again_and_again_has_failed(tmp_path):
  sweep_dir = sweeping.plan(
    tmp_path,
    """
    Sweep.space = {'DO': ['kill', 'die', 'stop', 'hang', 'sleep', 'obey']}
    Sweep.max_kills = 2
    Sweep.lease_seconds = 1
    Sweep.time_limit = '2s'
    Sweep.grace_seconds = 3
    """,
  )
  begun = time.monotonic()
  code, out, _ = sweeping.run(sweep_dir, '--parallel=6', '--keep_going')
  assert time.monotonic() - begun < 30
  assert code == 1 and sweeping.states(sweep_dir) == ['failed'] * 6
  found = results_lib.read(plan_lib.read(sweep_dir))
  errors_found = [result.facts['error'] for result in found]
  assert (
    errors_found
    == [
      'ended by SIGKILL 2 times in a row without getting further; is it out of '
      'memory?'
    ]
    * 3
    + ['it took longer than Sweep.time_limit = 2s'] * 3
  )
  for result in found[4:]:
    assert result.seconds < 4.9  # it did not need the grace
    log = (result.directory / 'log.txt').read_text()
    assert 'error' not in log
  assert found[1].history == [(1, 0.5)]


def test_a_target_that_takes_no_part_or_cannot_be_started(tmp_path):
  plan = _planned(tmp_path, _GRID)
  command = plan.sweep_dir / 'command.json'
  command.write_text(json.dumps({**plan.command, 'argv': ['true']}))
  assert sweeping.run(plan.sweep_dir)[0] == 1
  (one, _) = results_lib.read(plan)
  assert 'does the command hand --sweep_dir and --trial' in one.facts['error']
  command.write_text(json.dumps({**plan.command, 'argv': ['no-such-thing']}))
  code, _, err = sweeping.run(plan.sweep_dir, '--retry=failed')
  assert code == 2 and "cannot start 'no-such-thing'" in err
  assert sweeping.states(plan.sweep_dir) == ['pending', 'pending']


# Who runs them.


@pytest.fixture
def slow_sweep(tmp_path):
  return sweeping.plan(
    tmp_path,
    f"""
    SLEEP = 0.1
    STEPS = 12
    {_GRID}""",
  )


def _alive(pid):
  return _lease_lib._start_of(pid) != ''


def _holders(sweep_dir):
  return [
    s.process() for s in _lease_lib.read(sweep_dir).values() if s.process()
  ]


def _has_lines(sweep_dir):
  return len(list(sweep_dir.glob('*/metrics.jsonl'))) == 2


def _check_whole(sweep_dir):
  for result in results_lib.read(plan_lib.read(sweep_dir)):
    assert result.status == 'done'
    steps = [line['step'] for line in result.metrics()]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize(
  'name', [pytest.param('SIGINT', marks=pytest.mark.slow), 'SIGTERM', 'SIGKILL']
)
def test_a_controller_that_is_stopped_or_killed_loses_nothing(slow_sweep, name):
  process = sweeping.start('run', f'--sweep_dir={slow_sweep}', '--parallel=2')
  sweeping.until(lambda: _has_lines(slow_sweep), 'a line of each')
  children = _holders(slow_sweep)
  assert len(children) == 2
  process.send_signal(getattr(signal, name))
  process.communicate(timeout=30)
  number = getattr(signal, name)
  killed = name == 'SIGKILL'
  assert process.returncode == (-number if killed else 128 + number)
  sweeping.until(lambda: not any(map(_alive, children)), 'the end of all')
  states = sweeping.states(slow_sweep)
  assert states == (['running'] if killed else ['pending']) * 2
  assert sweeping.run(slow_sweep, '--parallel=2')[0] == 0
  _check_whole(slow_sweep)


def test_two_controllers_at_once_are_refused_and_workers_are_not(slow_sweep):
  process = sweeping.start('run', f'--sweep_dir={slow_sweep}')
  sweeping.until(lambda: _holders(slow_sweep), 'a trial')
  line = _refused('run', f'--sweep_dir={slow_sweep}')
  assert f'is in use by pid {process.pid} on' in line
  code, out, _ = sweeping.sweep('worker', f'--sweep_dir={slow_sweep}')
  assert code == 0 and '2 done' in out
  assert process.wait(timeout=30) == 0
  process.communicate()
  _check_whole(slow_sweep)


def _elsewhere(plan, seconds):
  """As if a process on another machine ran trial 0, `seconds` ago."""
  path = plan.sweep_dir / 'leases' / '0000.running.elsewhere_1_1_0'
  os.rename(plan.sweep_dir / 'leases' / '0000.pending', path)
  then = time.time() - seconds
  os.utime(path, (then, then))


def test_a_trial_is_taken_over_when_its_lease_has_run_out_not_before(tmp_path):
  plan = _planned(tmp_path, _GRID)
  _elsewhere(plan, 50)
  with pytest.raises(errors.RunDirectoryError) as raised:
    trial_lib.run(plan.sweep_dir, 0, lambda trial: 0)
  assert 'is run by pid 1 on elsewhere, which gave a sign' in str(raised.value)
  os.rename(
    plan.sweep_dir / 'leases' / '0000.running.elsewhere_1_1_0',
    plan.sweep_dir / 'leases' / '0000.pending',
  )
  _elsewhere(plan, 70)

  def work(trial):
    _write(trial.directory, [(1, 0.5)])
    return 0

  assert trial_lib.run(plan.sweep_dir, 0, work) == 0
  assert sweeping.states(plan.sweep_dir) == ['done', 'pending']


def test_who_lost_a_trial_leaves_at_once_and_writes_nothing(slow_sweep):
  process = subprocess.Popen(
    [*sweeping.TARGET, f'--sweep_dir={slow_sweep}', '--trial_index=0'],
    cwd=sweeping.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  lines = slow_sweep / '0000_LR=0.1' / 'metrics.jsonl'
  sweeping.until(lines.exists, 'a line')
  seen = _lease_lib.find(slow_sweep, 0)
  before = lines.read_text()
  assert _lease_lib.take(seen) is not None
  _, err = process.communicate(timeout=30)
  assert process.returncode == 3 and 'took this trial over' in err
  # One line may have been on its way when the lease changed hands.
  assert len(lines.read_text().splitlines()) <= len(before.splitlines()) + 1
  assert sweeping.states(slow_sweep)[0] == 'running'


def test_of_many_who_take_a_trial_one_gets_it(tmp_path):
  plan = _planned(tmp_path, _GRID)
  seen = _lease_lib.find(plan.sweep_dir, 0)
  taken = [_lease_lib.take(seen) for _ in range(5)]
  assert [lease is not None for lease in taken] == [True] + [False] * 4
  late = _lease_lib.Lease(seen.path)
  with pytest.raises(_lease_lib.LostError):
    late.end('done')


def test_a_trial_by_number_runs_once(tmp_path, capsys, monkeypatch):
  plan = _planned(tmp_path, _GRID)
  # Who runs it may be a task of a scheduler that tells of others.
  monkeypatch.setenv('TF_CONFIG', '{"cluster": {"worker": ["a:1", "b:1"]}}')
  monkeypatch.setenv('SLURM_STEP_NODELIST', 'a,b')

  def work(trial):
    assert cluster_resolver.resolve(os.environ) is None
    _write(trial.directory, [(1, 0.5)])
    with pytest.raises(errors.RunDirectoryError, match='is run by pid'):
      trial_lib.run(plan.sweep_dir, 1, work)
    return 0

  assert trial_lib.run(plan.sweep_dir, 1, work) == 0
  assert trial_lib.run(plan.sweep_dir, 1, work) == 0
  assert capsys.readouterr().out == 'Trial 1 is over; nothing to do.\n'
  with pytest.raises(errors.ConfigError, match='has trials 0 to 1, and no'):
    trial_lib.run(plan.sweep_dir, 2, work)
  assert trial_lib.run(plan.sweep_dir, 0, lambda trial: 143) == 143
  assert sweeping.states(plan.sweep_dir) == ['pending', 'done']


# Pruning.


@pytest.mark.parametrize(
  ('own', 'others', 'kept'),
  [
    (0.5, [], True),  # nobody to compare with
    (0.5, [0.4], True),
    (0.5, [0.6], False),  # the best third of two is one
    (0.5, [0.6, 0.4, 0.3], True),  # of four it is two
    (0.5, [0.6, 0.7, 0.3], False),
    (0.5, [0.5, 0.5, 0.5, 0.5], True),  # nobody is better
    (-math.inf, [0.1], False),
  ],
)
def test_asha_keeps_the_best_third(own, others, kept):
  assert pruner_lib.Asha(10).keeps([own], others) is kept


def test_asha_compares_at_its_rungs_only():
  asha = pruner_lib.Asha(min_steps=10, factor=3)
  due = [s for s in range(5, 300, 5) if asha.is_due(s - 5, s)]
  assert due == [10, 30, 90, 270]
  assert asha.is_due(24, 36)  # the first value after 30


@pytest.mark.parametrize(
  ('own', 'others', 'kept'),
  [
    ([0.1], [0.5, 0.6], True),  # too few to tell
    ([0.1], [0.4, 0.5, 0.6], False),
    ([0.5, 0.1], [0.4, 0.5, 0.6], True),  # its best counts, not a dip
  ],
)
def test_median_prunes_below_the_median(own, others, kept):
  assert pruner_lib.Median(10).keeps(own, others) is kept


def _write(directory, values):
  for step, value in values:
    line = {'step': step, 'source': 'eval/test', 'accuracy': value}
    jsonl.append_line(directory / 'metrics.jsonl', json.dumps(line))


def _report(step, value):
  return report_lib.Report(
    source='eval/test',
    step=step,
    previous_step=step - 10,
    start_step=0,
    last_step=100,
    scalars={'accuracy': value},
  )


def test_a_trial_is_pruned_by_peers_at_equal_steps_and_stays_so(tmp_path):
  plan = _planned(
    tmp_path,
    """
    Sweep.space = {'LR': [1, 2, 3]}
    Sweep.prune = @Asha()
    Asha.min_steps = 20
    """,
  )
  mine, peer, far = plan.trials
  for trial in plan.trials:
    plan.directory(trial).mkdir()
  watch = trial_lib.Watch(plan, mine, lambda: None)
  _write(plan.directory(peer), [(10, 0.9), (20, 0.9)])
  _write(plan.directory(far), [(10, 0.95), (30, 0.95)])

  _write(plan.directory(mine), [(10, 0.1)])
  assert watch(_report(10, 0.1)) is None  # before min_steps
  _write(plan.directory(mine), [(20, 0.1)])
  assert watch(_report(20, 0.1)) is report_lib.Signal.STOP
  assert json.loads(
    (plan.directory(mine) / results_lib.PRUNED).read_text()
  ) == {
    'step': 20,
    'better': 1,
    'compared': 2,
  }  # `far` has no value at 20
  (plan.directory(peer) / 'metrics.jsonl').unlink()
  assert watch(_report(20, 0.1)) is report_lib.Signal.STOP  # as it was decided
  assert watch(_report(10, 0.1)) is None  # not before, when it is resumed


def test_repeats_are_compared_with_those_of_the_same_seed(tmp_path):
  plan = _planned(
    tmp_path,
    f"""
    {_GRID}
    Sweep.seeds = [0, 1]
    Sweep.prune = @Asha()
    Asha.min_steps = 20
    """,
  )
  for trial, value in zip(plan.trials, (0.1, 0.9, 0.05, 0.9), strict=True):
    plan.directory(trial).mkdir()
    _write(plan.directory(trial), [(20, value)])
  first, second, third, _ = plan.trials
  assert trial_lib.Watch(plan, first, lambda: None)(_report(20, 0.1)) is None
  assert trial_lib.Watch(plan, second, lambda: None)(_report(20, 0.9)) is None
  assert (
    trial_lib.Watch(plan, third, lambda: None)(_report(20, 0.05)) is not None
  )


def test_pruned_trials_end_early_and_are_no_failures(tmp_path):
  sweep_dir = sweeping.plan(
    tmp_path,
    """
    STEPS = 9
    Sweep.space = {'LR': [0.3, 0.2, 0.1]}
    Sweep.prune = @Asha()
    Asha.min_steps = 3
    """,
  )
  code, out, _ = sweeping.run(sweep_dir)
  assert code == 0 and '1 done, 2 pruned, best' in out
  found = results_lib.read(plan_lib.read(sweep_dir))
  assert [result.step for result in found] == [9, 3, 3]


# What is best, and what is drawn.


def test_the_best_has_the_best_mean_over_its_seeds(tmp_path):
  plan = _planned(tmp_path, f'{_GRID}Sweep.seeds = [0, 1]')
  # The best single value is that of the second; the best mean the first's.
  for trial, value in zip(plan.trials, (0.8, 0.7, 0.9, 0.1), strict=True):

    def work(running, value=value):
      _write(running.directory, [(1, value)])
      return 0

    trial_lib.run(plan.sweep_dir, trial.index, work)
  best = results_lib.best(results_lib.read(plan), 'max')
  assert best.trial.point == 0
  assert results_lib.best(results_lib.read(plan), 'min').trial.point == 1


def test_a_sampler_draws_once_for_all_seeds_and_learns(tmp_path):
  pytest.importorskip('optuna')
  plan = _planned(
    tmp_path,
    """
    Sweep.space = {'LR': 'log_uniform(1e-3, 1)', 'M': [@Adam(), 'x']}
    Sweep.search = 'tpe'
    Sweep.num_trials = 12
    Sweep.seeds = [0, 1]
    """,
  )
  assert plan.trials[0].bindings is None
  drawn = []

  def work(trial):
    drawn.append(trial.bindings)
    rate = float(trial.bindings[0].removeprefix('LR = '))
    _write(trial.directory, [(1, -abs(math.log(rate / 0.01)))])
    return 0

  for trial in plan.trials:
    trial_lib.run(plan.sweep_dir, trial.index, work)
  assert sweeping.states(plan.sweep_dir) == ['done'] * 24
  for first, second in zip(drawn[::2], drawn[1::2], strict=True):
    assert first[:2] == second[:2]
    assert [first[2], second[2]] == [f'Experiment.seed = {s}' for s in (0, 1)]
  assert len({tuple(lines[:2]) for lines in drawn}) == 12
  assert {lines[1] for lines in drawn} == {'M = @Adam()', "M = 'x'"}
  told = (plan.sweep_dir / 'optuna.journal').read_text()
  assert told.count('"values"') == 11  # of all but the last
  assert told.count('"op_code":4') == 12  # and none was asked for twice


def test_a_sampler_that_is_not_there_is_told_before(monkeypatch):
  pytest.importorskip('optuna')
  _optuna_sampler.check('tpe')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    errors.ConfigError, match="'gp' needs torch, which is not"
  ):
    _optuna_sampler.check('gp')


# Places.


def test_cores_and_gpus_are_dealt_out(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 2, 3, 6})
  found = resource_slots.make(2, gpus_per_trial=2, gpus=['0', '1', '2', '3'])
  assert [slot.cores for slot in found] == [{0, 2, 6}, {1, 3}]
  assert [slot.environment() for slot in found] == [
    {'CUDA_VISIBLE_DEVICES': '0,1'},
    {'CUDA_VISIBLE_DEVICES': '2,3'},
  ]
  assert [slot.cores for slot in resource_slots.make(6, 0, [])][5] == {0}
  assert resource_slots.make(1, None, [])[0].environment() == {}
  assert resource_slots.make(1, None, ['7'])[0].gpus == ('7',)
  with pytest.raises(errors.ConfigError, match='with 1 GPUs each, but there'):
    resource_slots.make(2, None, ['7'])


def test_the_process_of_a_trial_stays_on_its_cores():
  with subprocess.Popen(['sleep', '60']) as process:
    cores = frozenset([min(os.sched_getaffinity(0))])
    resource_slots.pin(process.pid, resource_slots.Slot(cores))
    assert os.sched_getaffinity(process.pid) == cores
    process.kill()


# Real trials.


_DIGITS = """
  include 'digits.gin'
  Experiment.export = False
  Experiment.log_every = 10
  Experiment.eval_every = 10
  STEPS = 20
"""


def _describe(commands, sweep_dir):
  ended = commands.run(
    '--mode=describe', '--format=json', f'--sweep_dir={sweep_dir}'
  )
  assert ended.code == 0, ended.stderr
  return json.loads(ended.stdout.splitlines()[-1])


def _at(plan, name):
  """Where base.gin binds a name."""
  lines = plan.base.read_text().splitlines()
  (number,) = (n for n, line in enumerate(lines, 1) if line.startswith(name))
  return f'{plan.base}:{number}'


def test_a_target_checks_all_trials_at_once(commands, tmp_path):
  plan = _planned(
    tmp_path,
    f"""{_DIGITS}
    Sweep.space = [
      {{'Adam.learning_rate': [0.01, 'high']}},
      {{'Adam.learning_rat': [0.1]}},
      {{'digits.make_task.optimizer': [@SGD], 'SGD.momentum': [0.9]}},
      {{'SGD.momentum': [0.9], 'STEPS': [30]}}]
    """,
  )
  found = _describe(commands, plan.sweep_dir)
  assert set(found['metrics']) >= {'train/loss', 'eval/test/accuracy'}
  assert [one.get('steps') for one in found['trials']] == [20] + [None] * 4
  assert [one['error'] for one in found['trials']] == [
    None,
    "--gin_bindings: Adam.learning_rate = 'high' is str, expected float",
    "--gin_bindings: Adam has no parameter 'learning_rat'; did you mean "
    "'learning_rate'?",
    f'{_at(plan, "Adam.learning_rate")}: Adam.learning_rate has no effect: '
    'nothing refers to @Adam; do so, or remove the binding',
    '--gin_bindings: SGD.momentum has no effect: nothing refers to @SGD; do '
    'so, or remove the binding',
  ]


@pytest.mark.slow
def test_a_metric_that_only_some_trials_write_is_told_before(
  commands, tmp_path
):
  plan = _planned(
    tmp_path,
    f"""{_DIGITS}
    small/digits.test_data.batch_size = 359
    Sweep.space = {{'Experiment.eval_data': [
      {{'test': @small/digits.test_data}},
      {{'other': @small/digits.test_data}}]}}
    """,
  )
  first, second = _describe(commands, plan.sweep_dir)['trials']
  assert first['error'] is None
  assert second['error'].startswith(
    'it never writes eval/test/accuracy, which other trials do; it writes train'
  )


def test_what_a_sampler_may_draw_is_checked_by_samples(commands, tmp_path):
  plan = _planned(
    tmp_path,
    f"""{_DIGITS}
    Sweep.space = {{'Adam.learning_rate': 'log_uniform(1e-4, 1e-2)',
                   'digits.make_task.filters': [8, 'many']}}
    Sweep.search = 'tpe'
    Sweep.num_trials = 50
    """,
  )
  found = _describe(commands, plan.sweep_dir)
  wrong = [one['error'] for one in found['trials'] if one['error']]
  assert wrong == [
    "--gin_bindings: digits.make_task.filters = 'many' is str, expected int"
  ]


@pytest.mark.slow
def test_any_scheduler_may_run_a_real_trial(commands, tmp_path):
  plan = _planned(
    tmp_path,
    f"""{_DIGITS}
    digits.make_task.filters = 4
    Sweep.space = {{'LEARNING_RATE': [0.001, 1e30]}}
    Sweep.seeds = [7]
    Sweep.prune = @Median()
    Median.min_steps = 5
    """,
  )
  command = (f'--sweep_dir={plan.sweep_dir}', '--trial_index=0')
  assert commands.run(*command).code == 0
  done = commands.run(*command)
  assert done.code == 0 and 'Trial 0 is over' in done.stdout
  bad = commands.run(f'--sweep_dir={plan.sweep_dir}', '--trial_index=1')
  assert bad.code == 1 and 'loss' in bad.error
  first, second = results_lib.read(plan)
  assert (first.status, second.status) == ('done', 'diverged')
  assert [step for step, _ in first.history] == [10, 20]
  config = (first.directory / 'config.gin').read_text()
  assert 'LEARNING_RATE = 0.001' in config and 'Experiment.seed = 7' in config
  assert 'Sweep' not in config


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
      'digits_lt.gin', [pathlib.Path(sweeping.ROOT / 'configs')], '--sweep'
    )

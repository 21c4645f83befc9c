"""The scheduler: trials that fail, hang or die, and killed controllers."""

import json
import math
import signal

import pytest

from tests.support import planned_sweeps
from tests.support import sweep_commands
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib


def test_all_trials_run_and_the_same_command_touches_nothing(tmp_path):
  sweep_dir = sweep_commands.plan(tmp_path, planned_sweeps.GRID)
  code, out, _ = sweep_commands.run(sweep_dir, '--parallel=2')
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
  code, out, _ = sweep_commands.run(sweep_dir)
  assert code == 0 and stamps() == before
  code, out, _ = sweep_commands.sweep('status', f'--sweep_dir={sweep_dir}')
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


@pytest.mark.slow
def test_what_fails_fails_alone_and_is_tried_again_on_request(tmp_path):
  sweep_dir = sweep_commands.plan(
    tmp_path, "Sweep.space = {'DO': ['fail', '', 'nan', 'other metric']}"
  )
  code, out, _ = sweep_commands.run(sweep_dir)
  assert code == 1
  assert sweep_commands.states(sweep_dir) == [
    'failed',
    'done',
    'diverged',
    'failed',
  ]
  assert 'DO=fail: ConfigError: no such thing in 1 ways' in out
  assert (
    'the metric eval/test/accuracy was never written to '
    f'{sweep_dir}/0003_DO=other-metric/metrics.jsonl; written were '
    'eval/test/loss'
  ) in out
  done = sweep_dir / '0001_DO=' / 'status.json'
  before = done.read_text()
  mended = {'MENDED': str(done)}
  assert sweep_commands.run(sweep_dir, env=mended)[0] == 1
  assert sweep_commands.states(sweep_dir)[0] == 'failed'  # nobody asked for it
  code, out, _ = sweep_commands.run(sweep_dir, '--retry=failed', env=mended)
  assert 'Again: 2 trials' in out
  assert sweep_commands.states(sweep_dir) == [
    'done',
    'done',
    'diverged',
    'failed',
  ]
  assert done.read_text() == before
  found = results_lib.read(plan_lib.read(sweep_dir))
  assert found[0].facts['attempts'] == 2 and 'error' not in found[0].facts
  assert (
    found[2].value('max') == -math.inf and found[2].value('min') == math.inf
  )


@pytest.mark.slow
def test_three_equal_failures_in_a_row_stop_the_sweep(tmp_path):
  sweep_dir = sweep_commands.plan(
    tmp_path,
    """
    DO = 'fail'
    Sweep.space = {'LR': [1, 2, 3, 4, 5]}
    """,
  )
  code, _, err = sweep_commands.run(sweep_dir)
  (line,) = err.splitlines()
  assert code == 2
  assert line.startswith(
    'error: three trials in a row failed alike (ConfigError: no such thing in 1'
    ' ways); mend that, then run with --retry=failed; see '
  )
  assert sweep_commands.states(sweep_dir) == ['failed'] * 3 + ['pending'] * 2
  code, _, err = sweep_commands.run(sweep_dir, '--keep_going')
  assert sweep_commands.states(sweep_dir) == ['failed'] * 5


@pytest.mark.slow
def test_what_hangs_or_dies_again_and_again_has_failed(tmp_path):
  sweep_dir = sweep_commands.plan(
    tmp_path,
    """
    Sweep.space = {'DO': ['kill', 'die', 'stop', 'hang', 'sleep', 'obey']}
    Sweep.max_kills = 2
    Sweep.lease_seconds = 6
    Sweep.time_limit = '2s'
    Sweep.grace_seconds = 3
    """,
  )
  code, out, _ = sweep_commands.run(sweep_dir, '--parallel=6', '--keep_going')
  assert code == 1 and sweep_commands.states(sweep_dir) == ['failed'] * 6
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
    assert result.seconds < found[3].seconds  # it did not need the grace
    log = (result.directory / 'log.txt').read_text()
    assert 'error' not in log
  assert found[1].history == [(1, 0.5)]


def test_a_target_that_takes_no_part_or_cannot_be_started(tmp_path):
  plan = planned_sweeps.planned(tmp_path, planned_sweeps.GRID)
  command = plan.sweep_dir / 'command.json'
  command.write_text(json.dumps({**plan.command, 'argv': ['true']}))
  assert sweep_commands.run(plan.sweep_dir)[0] == 1
  (one, _) = results_lib.read(plan)
  assert 'does the command hand --sweep_dir and --trial' in one.facts['error']
  command.write_text(json.dumps({**plan.command, 'argv': ['no-such-thing']}))
  code, _, err = sweep_commands.run(plan.sweep_dir, '--retry=failed')
  assert code == 2 and "cannot start 'no-such-thing'" in err
  assert sweep_commands.states(plan.sweep_dir) == ['pending', 'pending']


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


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', [pytest.param('SIGINT', marks=pytest.mark.slow), 'SIGTERM', 'SIGKILL']
)
def test_a_controller_that_is_stopped_or_killed_loses_nothing(slow_sweep, name):
  process = sweep_commands.start(
    'run', f'--sweep_dir={slow_sweep}', '--parallel=2'
  )
  sweep_commands.until(lambda: _has_lines(slow_sweep), 'a line of each')
  children = _holders(slow_sweep)
  assert len(children) == 2
  process.send_signal(getattr(signal, name))
  process.communicate(timeout=30)
  number = getattr(signal, name)
  killed = name == 'SIGKILL'
  assert process.returncode == (-number if killed else 128 + number)
  sweep_commands.until(lambda: not any(map(_alive, children)), 'the end of all')
  states = sweep_commands.states(slow_sweep)
  assert states == (['running'] if killed else ['pending']) * 2
  assert sweep_commands.run(slow_sweep, '--parallel=2')[0] == 0
  _check_whole(slow_sweep)


@pytest.mark.slow
def test_two_controllers_at_once_are_refused_and_workers_are_not(slow_sweep):
  process = sweep_commands.start('run', f'--sweep_dir={slow_sweep}')
  sweep_commands.until(lambda: _holders(slow_sweep), 'a trial')
  line = planned_sweeps.refused('run', f'--sweep_dir={slow_sweep}')
  assert f'is in use by pid {process.pid} on' in line
  code, out, _ = sweep_commands.sweep('worker', f'--sweep_dir={slow_sweep}')
  assert code == 0 and '2 done' in out
  assert process.wait(timeout=30) == 0
  process.communicate()
  _check_whole(slow_sweep)

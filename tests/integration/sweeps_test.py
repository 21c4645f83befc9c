"""Sweeps of many trials: under kills, with pruning, and of real runs."""

import os
import random
import signal
import sys
import time

import pytest

from tests.support import paths
from tests.support import sweep_commands
from tests.support import tensorboard_reader
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib

pytestmark = pytest.mark.slow

_WORKERS = 8
_TRIALS = 200
_STEPS = 10


def _holders(sweep_dir):
  return [
    seen.process()
    for seen in _lease_lib.read(sweep_dir).values()
    if seen.state == 'running' and seen.process()
  ]


def _kill_some(sweep_dir, workers, generator):
  """Kills a worker or the process of a trial; returns whether it did."""
  trials = set(_holders(sweep_dir)) - {w.pid for w in workers}
  alive = [w.pid for w in workers if w.poll() is None]
  victims = generator.choice([some for some in (alive, sorted(trials)) if some])
  try:
    os.kill(generator.choice(victims), signal.SIGKILL)
  except ProcessLookupError:
    return 0
  return 1


@pytest.mark.timeout(580)
def test_each_trial_is_done_exactly_once_whoever_is_killed(tmp_path):
  sweep_dir = sweep_commands.plan(
    tmp_path,
    f"""
    STEPS = {_STEPS}
    SLEEP = 0.02
    Sweep.space = {{'LR': 'uniform(0, 1)'}}
    Sweep.search = 'random'
    Sweep.num_trials = {_TRIALS}
    Sweep.max_kills = 1000
    Sweep.lease_seconds = 5
    """,
  )
  generator = random.Random(0)
  workers = []
  kills = 0
  begun = time.monotonic()
  while set(sweep_commands.states(sweep_dir)) != {'done'}:
    workers = [w for w in workers if w.poll() is None]
    while len(workers) < _WORKERS:
      workers.append(sweep_commands.start('worker', f'--sweep_dir={sweep_dir}'))
    time.sleep(generator.uniform(0, 0.3))
    kills += _kill_some(sweep_dir, workers, generator)
  seconds = time.monotonic() - begun
  for worker in workers:
    worker.communicate(timeout=60)
  plan = plan_lib.read(sweep_dir)
  attempts = 0
  for result in results_lib.read(plan):
    assert result.status == 'done'
    assert result.facts['status'] == 'done'
    attempts += result.facts['attempts']
    steps = [line['step'] for line in result.metrics()]
    assert steps == list(range(1, _STEPS + 1)), result.directory
  assert kills > 50 and attempts > _TRIALS
  print(f'{kills} kills, {attempts} attempts, {seconds:.0f} s')


# Real trials: the digits.

_TFTRAIN = (sys.executable, '-m', 'tftrain')
_CONFIGS = paths.ROOT / 'configs' / 'sweeps'


def _real(directory, text):
  directory.mkdir()
  return sweep_commands.plan(directory, text, target=_TFTRAIN)


def _run_all(sweep_dir):
  process = sweep_commands.start(
    'run', f'--sweep_dir={sweep_dir}', '--parallel=2'
  )
  out, err = process.communicate(timeout=500)
  assert process.returncode == 0, err
  return out


@pytest.mark.timeout(590)
def test_twelve_trials_name_a_best_learning_rate(tmp_path):
  sweep_dir = _real(tmp_path / 'lr', (_CONFIGS / 'digits_lr.gin').read_text())
  _run_all(sweep_dir)
  found = results_lib.read(plan_lib.read(sweep_dir))
  assert len(found) == 12 and {r.status for r in found} == {'done'}
  best = results_lib.best(found, 'max')
  assert best.bindings[0] in ('LEARNING_RATE = 0.001', 'LEARNING_RATE = 0.003')
  assert best.value('max') > 0.96
  code, out, err = sweep_commands.sweep('report', f'--sweep_dir={sweep_dir}')
  assert code == 0, err
  assert out.startswith('Best: LEARNING_RATE = 0.00')
  rows = tensorboard_reader.hparams_rows(sweep_dir)
  assert len(rows) == 12
  assert {row[0]['LEARNING_RATE'] for row in rows} == {
    1e-5,
    1e-4,
    3e-4,
    1e-3,
    3e-3,
    3e-2,
  }
  assert all('eval/test/accuracy' in metrics for _, metrics in rows)


def _steps(sweep_dir):
  return sum(
    result.step for result in results_lib.read(plan_lib.read(sweep_dir))
  )


def _best(sweep_dir):
  return results_lib.best(
    results_lib.read(plan_lib.read(sweep_dir)), 'max'
  ).value('max')


@pytest.mark.timeout(590)
def test_pruning_takes_half_the_steps_and_finds_as_good_a_trial(tmp_path):
  text = (_CONFIGS / 'digits_optimizers.gin').read_text()
  whole = [
    line
    for line in text.splitlines()
    if 'prune =' not in line and 'Asha.' not in line
  ]
  pruned = _real(tmp_path / 'pruned', text)
  full = _real(tmp_path / 'full', '\n'.join(whole))
  _run_all(pruned)
  _run_all(full)
  print(f'{_steps(pruned)} of {_steps(full)} steps', _best(pruned), _best(full))
  assert _steps(full) == 14 * 900
  assert _steps(pruned) <= _steps(full) / 2
  assert _best(pruned) >= _best(full) - 0.005


_SMALL = """
  include 'digits.gin'
  digits.make_task.filters = 8
  STEPS = 3000
  Experiment.log_every = 500
  Experiment.checkpoint_every = 500
  Experiment.export = False
  Sweep.space = {'LEARNING_RATE': [0.001, 0.01]}
"""


@pytest.mark.timeout(590)
@pytest.mark.parametrize('name', ['SIGKILL', 'SIGINT'])
def test_killed_and_run_again_equals_never_killed(tmp_path, name):
  never = _real(tmp_path / 'never', _SMALL)
  _run_all(never)
  killed = _real(tmp_path / 'killed', _SMALL)
  process = sweep_commands.start('run', f'--sweep_dir={killed}', '--parallel=2')

  def both_train():
    return len(list(killed.glob('*/metrics.jsonl'))) == 2

  sweep_commands.until(both_train, 'a line of each')
  process.send_signal(getattr(signal, name))
  process.communicate(timeout=60)
  assert 'done' not in sweep_commands.states(killed)
  _run_all(killed)
  for one, other in zip(
    results_lib.read(plan_lib.read(never)),
    results_lib.read(plan_lib.read(killed)),
    strict=True,
  ):
    assert other.facts['attempts'] == 2
    assert one.metrics() == other.metrics()

"""Signals, deadlines and errors that stop a run, wherever it is just then."""

import time

import pytest

from tests.faults import mishaps

pytestmark = pytest.mark.slow

_SLOW_DISK = 'Experiment.actions = [@mishaps.SlowDisk()]'


def wait_for_save(life, run):
  life.until(lambda: list(run.checkpoints.glob('.tmp-ckpt-*')), 'a save')


def test_a_signal_in_a_step_is_obeyed_within_a_long_block(run, quiet):
  """Though the compiled loop would run for minutes."""
  slow = ['mishaps.make_task.pause = 0.1', 'Experiment.steps_per_loop = 1000']
  names = ('log_every', 'checkpoint_every', 'eval_every')
  rarely = [f'Experiment.{name} = 1000' for name in names]
  life = run.start(*slow, *rarely)
  life.until(lambda: 'the first step begins' in life.text('stderr'), 'a step')
  time.sleep(1)  # step 1 is a block of its own; the next one takes 8 s
  life.send('SIGTERM')
  ended = life.wait()
  assert ended.code == 143
  assert 'SIGTERM: stopping after this step' in ended.stderr
  (step,) = run.steps()
  assert 0 < step < mishaps.STEPS
  assert f'Stopped at step {step} of 80; the same command' in ended.stdout


@pytest.mark.parametrize('name,code', [('SIGTERM', 143), ('SIGINT', 130)])
def test_a_signal_in_a_save_lets_it_end(name, code, run, quiet):
  life = run.start(_SLOW_DISK)
  wait_for_save(life, run)
  life.send(name)
  ended = life.wait()
  assert ended.code == code
  assert 10 in run.steps()
  assert run.leftovers() == []
  run.finish()
  assert run.end() == quiet


def test_a_signal_in_an_evaluation_leaves_it_to_the_next_life(run, quiet):
  slow = 'mishaps.make_task.eval_pause = 0.8'  # five of them
  life = run.started_until(40, slow)  # the evaluation of step 40 begins
  life.send('SIGTERM')
  assert life.wait().code == 143
  assert run.last_reported('eval/test') == 0
  run.finish(slow)
  assert run.end() == quiet


def test_a_signal_in_an_export_leaves_it_to_the_next_life(run, quiet):
  export = 'Experiment.export = True'
  life = run.start(export)
  exports = run.model_dir / 'export'
  life.until(lambda: list(exports.glob('.tmp-80-*')), 'an export')
  life.send('SIGTERM')
  assert life.wait().code == 143
  assert list(exports.iterdir()) == []
  run.finish(export)
  assert (exports / '80' / 'saved_model.pb').exists()
  assert run.end() == quiet


def test_a_signal_in_an_export_on_the_way_is_obeyed_too(run, quiet):
  export = ['Experiment.export = @Export()', 'Export.every = 30']
  life = run.start(*export)
  exports = run.model_dir / 'export'
  life.until(lambda: list(exports.glob('.tmp-30-*')), 'an export')
  life.send('SIGTERM')
  assert life.wait().code == 143
  assert list(exports.iterdir()) == [], 'another process was waited for'
  assert run.steps()[-1] == 30
  run.finish(*export)
  assert sorted(path.name for path in exports.iterdir()) == ['30', '60', '80']
  assert run.end() == quiet


def test_a_second_interrupt_aborts_at_once_and_commits_no_half(run, quiet):
  # So slow that whoever waits for it is taken for hung.
  life = run.start(_SLOW_DISK, 'mishaps.SlowDisk.seconds = 600')
  wait_for_save(life, run)
  life.send('SIGINT')
  life.until(lambda: 'again to abort now' in life.text('stderr'), 'the offer')
  life.send('SIGINT')
  ended = life.wait()
  assert ended.code == 130
  assert 'again to abort now' in ended.stderr
  assert run.steps() == []
  (run.model_dir / 'config.gin').unlink()  # the disk was slow in it
  run.finish()
  assert run.end() == quiet
  assert run.leftovers() == []


def test_signals_and_the_exit_code_may_be_a_schedulers(run, quiet):
  """As with `#SBATCH --signal=B:SIGUSR2@120 --requeue`."""
  flags = [
    '--stop_signals=SIGTERM,SIGUSR2',
    '--save_signals=SIGUSR1',
    '--preempt_exit_code=75',
  ]
  life = run.started_until(15, flags=flags)
  life.send('SIGUSR1')
  life.until(lambda: any(step % 10 for step in run.steps()), 'the save')
  life.send('SIGUSR2')
  ended = life.wait()
  assert ended.code == 75
  assert 'SIGUSR1: saving after this step' in ended.stderr
  assert 'SIGUSR2: stopping after this step' in ended.stderr
  run.finish()
  assert run.end() == quiet


def test_a_run_out_of_time_is_resumed(run, quiet):
  slow = 'mishaps.make_task.pause = 0.05'
  ended = run.live(slow, "Experiment.max_time = '2s'")
  assert ended.code == 143
  assert 'max_time: stopping after this step' in ended.stderr
  run.finish(slow)
  assert run.end() == quiet


def test_an_action_that_raises_costs_no_step(run, quiet):
  ended = run.live('Experiment.actions = [@mishaps.Broken()]')
  assert ended.code == 70  # the interpreter's own way to end is 1
  assert 'RuntimeError: out of paper' in ended.stderr
  assert run.steps()[-1] == 35
  run.finish()
  assert run.end() == quiet

"""A changed model_dir: damage, other settings, clocks and second trainers."""

import pytest

from tests.faults import mishaps

pytestmark = pytest.mark.slow


def newest(run):
  return run.checkpoints / f'ckpt-{run.steps()[-1]:08d}'


def test_a_killed_run_goes_on_as_if_it_had_not_been(run, quiet):
  for step in (25, 45, 60):
    run.killed_at(step)
  assert 'Resumed from step' in run.finish().stderr
  assert run.end() == quiet
  assert run.leftovers() == []


def _cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _to_directory(path):
  path.unlink()
  path.mkdir()


_POINTERS = {
  'empty': lambda path: path.write_bytes(b''),
  'garbled': lambda path: path.write_bytes(b'\xff\x00model_checkpoint_path: "'),
  'cut': _cut,
  'gone': lambda path: path.unlink(),
  'a directory': _to_directory,
  'names another': lambda path: path.write_text(
    'model_checkpoint_path: "ckpt-00000007/state"\n'
  ),
}


@pytest.mark.parametrize('what', _POINTERS)
def test_a_rotten_state_file_is_not_believed(what, killed, quiet, tmp_path):
  run = killed.copied(tmp_path / 'copy')
  step = run.steps()[-1]
  _POINTERS[what](run.checkpoints / 'checkpoint')
  assert f'Resumed from step {step}' in run.finish().stderr
  assert run.end() == quiet


def _flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 16
  path.write_bytes(content)


_DATA, _INDEX = 'state.data-00000-of-00001', 'state.index'
_DAMAGE = {
  'data cut': (_DATA, _cut),
  'data emptied': (_DATA, lambda path: path.write_bytes(b'')),
  'data flipped': (_DATA, _flip),
  'data gone': (_DATA, lambda path: path.unlink()),
  'index cut': (_INDEX, _cut),
  'index emptied': (_INDEX, lambda path: path.write_bytes(b'')),
  'manifest cut': ('manifest.json', _cut),
  'manifest gone': ('manifest.json', lambda path: path.unlink()),
}


@pytest.mark.parametrize('what', _DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(what, killed, quiet, tmp_path):
  run = killed.copied(tmp_path / 'copy')
  name, damage = _DAMAGE[what]
  damaged, before = newest(run), run.steps()[-2]
  damage(damaged / name)
  ended = run.finish()
  assert f'Resumed from step {before}' in ended.stderr
  assert f'Damaged checkpoint passed over: {damaged.name}' in ended.stderr
  assert list(run.checkpoints.glob(f'{damaged.name}.damaged-*'))
  assert run.end() == quiet


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(killed, tmp_path):
  run = killed.copied(tmp_path / 'copy')
  for path in run.checkpoints.glob('ckpt-*'):
    (path / _INDEX).write_bytes(b'')
  ended = run.live()
  assert ended.code == 2
  assert f'{run.checkpoints} holds 3 checkpoints but none' in ended.error
  assert 'refusing to start again from step 0' in ended.error


_OTHERS = {
  'another model': (
    'mishaps.make_task.width = 9',
    'float32[6, 8] vs model float32[6, 9]',
  ),
  'another optimizer': (
    'mishaps.make_task.optimizer = @RMSprop',
    'optimizers: checkpoint {"optimizer": "Adam"} vs now',
  ),
  'another batch size': ('mishaps.train_data.batch_size = 4', 'data: '),
  'another seed': ('Experiment.seed = 3', 'seed: checkpoint 0 vs now 3'),
}


@pytest.mark.parametrize('what', _OTHERS)
def test_a_run_that_is_not_the_same_any_more_is_refused(what, killed, tmp_path):
  """By its configuration; where only the code was changed, by its values."""
  run = killed.copied(tmp_path / 'copy')
  binding, difference = _OTHERS[what]
  name = binding.partition(' ')[0].removeprefix('mishaps.')
  ended = run.live(binding)
  assert ended.code == 2
  assert 'holds a run with another configuration' in ended.error
  assert f'{name}: not set -> ' in ended.error

  (run.model_dir / 'config.gin').unlink()
  ended = run.live(binding)
  assert ended.code == 2
  assert f'{newest(run)} is of another run' in ended.error
  assert difference in ended.error
  assert 'choose a new model_dir' in ended.error


def test_another_number_of_replicas_goes_on_at_the_same_example(run, tmp_path):
  bindings = ['mishaps.make_task.dropout = 0.0']
  run.killed_at(45, *bindings)
  alone = run.copied(tmp_path / 'alone')
  alone.finish(*bindings)
  flags = ['--local_devices=2', '--strategy=mirrored']
  ended = run.finish(*bindings, flags=flags)
  assert 'Resumed from step' in ended.stderr
  pairs = zip(run.lines(), alone.lines(), strict=True)
  for one, other in pairs:
    assert (one.pop('step'), one.pop('source')) == (
      other.pop('step'),
      other.pop('source'),
    )
    assert one == pytest.approx(other, rel=1e-4)


def test_wrong_clocks_change_nothing(run, quiet):
  for step, clock in ((25, 'Tomorrow'), (45, 'Yesterday')):
    run.killed_at(step, f'Experiment.actions = [@mishaps.{clock}()]')
  run.finish()
  assert run.end() == quiet
  assert run.steps() == [60, 70, 80]
  assert run.charted('train') == list(range(5, 81, 5))


def test_a_second_trainer_is_refused_until_the_first_is_dead(run, quiet):
  first = run.started_until(25)
  first.send('SIGSTOP')  # it lives, and does nothing
  before = {path.name for path in run.model_dir.rglob('*')}
  second = run.live()
  assert second.code == 2
  assert f'{run.model_dir} is in use by pid {first.pid} on ' in second.error
  first.send('SIGKILL')
  first.wait()
  assert before <= {path.name for path in run.model_dir.rglob('*')}
  run.finish()
  assert run.end() == quiet


def test_a_finished_run_is_left_alone(run):
  run.finish()
  before = {p: p.stat().st_mtime_ns for p in run.model_dir.rglob('*')}
  ended = run.finish()
  assert f'Already at step {mishaps.STEPS}' in ended.stdout
  assert {p: p.stat().st_mtime_ns for p in run.model_dir.rglob('*')} == before

"""Rerun: repeats a run to the bit, and warns of differences."""

import json

import pytest

from tests.support import recorded_runs
from tftrain.launch import _rerun


@pytest.mark.slow
def test_rerun_repeats_a_run_to_the_bit(commands, tmp_path):
  old = recorded_runs.first_run(
    commands, tmp_path, '--local_devices=2', '--strategy=mirrored'
  )
  new = tmp_path / 'new'
  ended = commands.run('--mode=rerun', f'--run={old}', f'--model_dir={new}')
  assert ended.code == 0, ended
  assert f'Compared with {old}: the same' in ended.stdout
  assert 'warning: ' not in ended.stderr
  assert recorded_runs.record(new)['replicas'] == 2
  for name in ('digests.jsonl', 'config.gin'):
    assert (new / name).read_bytes() == (old / name).read_bytes()
  # gin writes dictionaries sorted, so `small` is evaluated before `test` now.
  for run in (old, new):
    lines = recorded_runs.read_lines(run / 'metrics.jsonl')
    assert [line['source'] for line in lines][:2] == ['train', 'train']
  assert sorted((old / 'metrics.jsonl').read_text().splitlines()) == sorted(
    (new / 'metrics.jsonl').read_text().splitlines()
  )


@pytest.mark.slow
def test_rerun_warns_of_what_is_not_as_it_was(commands, tmp_path):
  old = recorded_runs.first_run(commands, tmp_path, '--mode', 'train')
  run = recorded_runs.record(old)
  life = run['attempts'][-1]
  life['tensorflow'] = '2.20.0'
  life['data']['train']['sha256'] = 'other'
  life['git'] = {'commit': 'c' * 40, 'dirty': False, 'diff_sha256': None}
  (old / 'run.json').write_text(json.dumps(run))
  ended = commands.run(
    '--mode=rerun',
    f'--run={old}',
    f'--model_dir={tmp_path / "new"}',
    '--gin_bindings=Adam.learning_rate = 0.02',
  )
  assert ended.code == 0, ended
  lines = ended.stderr.splitlines()
  told = [line for line in lines if line.startswith('warning: ')]
  assert [line.split()[1] for line in told] == ['code', 'data', 'versions']
  assert 'tensorflow: 2.20.0 -> ' in told[2]
  assert 'different: step 2: the weights; the batch is the same' in ended.stdout
  assert 'config: Adam.learning_rate: 0.01 -> 0.02' in ended.stdout
  assert 'eval' not in (tmp_path / 'new' / 'metrics.jsonl').read_text()


def test_rerun_refuses_what_it_cannot_repeat(commands, tmp_path):
  old = recorded_runs.write_run(tmp_path / 'old', {})
  new = f'--model_dir={tmp_path / "new"}'
  asked = ['--mode=rerun', f'--run={old}']
  (old / 'config.gin').unlink()
  for flags, said in (
    (['--mode=rerun', new], '--run is missing'),
    (['--mode=rerun', new, f'--run={tmp_path}'], 'holds no run.json'),
    ([*asked, new], 'started from Python'),
    ([*asked, new, '--gin_file=a.gin'], 'leave out --gin_file'),
    ([*asked, f'--model_dir={old}'], 'model_dir of its own'),
  ):
    ended = commands.run(*flags)
    assert ended.code == 2 and said in ended.error
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  ('argv', 'value'),
  [
    ('t --local_devices=2', '2'),
    ('t --local_devices 3 --mode=train', '3'),
    ('t -local_devices=2 --local_devices=4', '4'),
    ('t --gin_bindings=local_devices=9', None),
  ],
)
def test_a_flag_is_found_on_an_old_command_line(argv, value):
  assert _rerun._value(argv.split(), 'local_devices') == value

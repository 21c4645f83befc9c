"""What is seen of a run afterwards: where it came from, where two differ."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tests import cases
import tftrain
from tftrain.actions import digests as digests_lib
from tftrain.actions import profiler
from tftrain.checkpoint import format
from tftrain.debug import compare_runs
from tftrain.experiment import run_record
from tftrain.interop import tracking
from tftrain.launch import _rerun


def git(directory, *words):
  identity = ('-c', 'user.name=t', '-c', 'user.email=t@example.com')
  subprocess.run(
    ['git', *identity, *words],
    cwd=directory,
    check=True,
    capture_output=True,
    env={**os.environ, 'GIT_CONFIG_GLOBAL': os.devnull},
  )


@pytest.fixture
def repository(tmp_path):
  """A commit with one module in a repository."""
  root = tmp_path / 'repository'
  (root / 'below').mkdir(parents=True)
  git(root, 'init', '--quiet')
  (root / 'model.py').write_text('width = 8\n')
  git(root, 'add', '.')
  git(root, 'commit', '--quiet', '-m', 'one')
  return root


def test_code_is_a_commit_and_a_hash_of_what_was_changed(repository):
  clean = run_record.code_version(repository)
  assert len(clean['commit']) == 40
  assert clean['dirty'] is False and clean['diff_sha256'] is None
  (repository / 'model.py').write_text('width = 9\n')
  changed = run_record.code_version(repository)
  assert changed['dirty'] and changed['commit'] == clean['commit']
  assert len(changed['diff_sha256']) == 64
  assert run_record.code_version(repository / 'below') == changed
  (repository / 'model.py').write_text('width = 10\n')
  assert (
    run_record.code_version(repository)['diff_sha256'] != changed['diff_sha256']
  )
  (repository / 'model.py').write_text('width = 8\n')
  assert run_record.code_version(repository) == clean


def test_a_module_that_git_does_not_know_yet_is_a_change(repository):
  hashes = []
  for text in ('a = 1\n', 'a = 2\n'):
    (repository / 'new.py').write_text(text)
    (repository / 'notes.txt').write_text(text)
    found = run_record.code_version(repository)
    assert found['dirty']
    hashes.append(found['diff_sha256'])
  assert hashes[0] != hashes[1]
  (repository / 'new.py').unlink()  # a text beside the code is none
  assert run_record.code_version(repository)['dirty'] is False


def fake_git(tmp_path, monkeypatch, script):
  program = tmp_path / 'bin' / 'git'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\n{script}\n')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(program.parent), prepend=os.pathsep)


def test_what_git_cannot_say_is_left_out(tmp_path, monkeypatch, repository):
  assert run_record.code_version(tmp_path) is None  # no repository
  fake_git(tmp_path, monkeypatch, 'exit 128')
  assert run_record.code_version(repository) is None
  monkeypatch.setenv('PATH', str(tmp_path / 'nowhere'))
  assert run_record.code_version(repository) is None


def is_alive(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rpartition(')')[2].split()[0] != 'Z'


def test_a_git_that_hangs_is_not_waited_for(tmp_path, monkeypatch, repository):
  fake_git(tmp_path, monkeypatch, f'sleep 30 & echo $! > {tmp_path}/pid; wait')
  begun = time.monotonic()
  assert run_record.code_version(repository, seconds=1.0) is None
  assert time.monotonic() - begun < 10
  pid = int((tmp_path / 'pid').read_text())
  while time.monotonic() - begun < 10 and is_alive(pid):
    time.sleep(0.01)
  assert not is_alive(pid)  # what it started is gone too


def test_what_is_long_in_a_fingerprint_is_kept_as_its_digest():
  files = [[f'train-{i:05d}', 100] for i in range(50)]
  kept = run_record.data_fingerprints(
    {'train': {'batch_size': 8, 'files': files}}
  )
  digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
  assert kept == {'train': {'batch_size': 8, 'files': f'sha256:{digest}'}}


def train_data():
  return tftrain.Arrays(cases.arrays(), 8)


def test_data():
  return tftrain.Arrays(cases.arrays(seed=1), 8, training=False)


test_data.__test__ = False


def experiment(**changes):
  fields = {
    'task': cases.supervised,
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


def test_each_life_says_what_it_was_made_of(tmp_path, monkeypatch, repository):
  monkeypatch.chdir(repository)
  experiment(steps=2, seed=3).train(tmp_path / 'run')
  (repository / 'model.py').write_text('secret = 7\n')
  experiment(steps=4, seed=3).train(tmp_path / 'run')
  lives = record(tmp_path / 'run')['attempts']
  assert [life['git']['dirty'] for life in lives] == [False, True]
  for life in lives:
    assert life['seed'] == 3 and life['replicas'] == 1
    assert set(life['data']) == {'train', 'eval/test'}
    assert life['data']['train']['batch_size'] == 8
    assert life['data']['train'] != life['data']['eval/test']
  assert 'secret' not in (tmp_path / 'run' / 'run.json').read_text()


def test_a_run_outside_of_a_repository_says_nothing_of_code(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  experiment(steps=1).train(tmp_path / 'run')
  assert 'git' not in record(tmp_path / 'run')['attempts'][0]


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def digests(every, **changes):
  return experiment(actions=[tftrain.actions.Digests(every)], **changes)


def sha256(*arrays):
  """By hand, as the docs say: name, dtype and shape, then the bytes."""
  digest = hashlib.sha256()
  for name, array in arrays:
    head = f'{name} {array.dtype.name}{list(array.shape)}\n'
    digest.update(head.encode() + array.tobytes())
  return digest.hexdigest()


def test_digests_are_of_the_batch_taken_and_the_weights_after_it(tmp_path):
  run = digests(2, steps=5).prepare(tmp_path / 'run')
  run.train()
  lines = read_lines(tmp_path / 'run' / 'digests.jsonl')
  assert [line['step'] for line in lines] == [2, 4, 5]
  batches = train_data().peek(5)
  for line in lines:
    x, y = batches[line['step'] - 1]
    assert line['batch'] == sha256(('0', x), ('1', y))
  owned = tracking.owned_by(run.trainer.task).variables
  weights = [(name, owned[name].numpy()) for name in sorted(owned)]
  assert lines[-1]['weights'] == sha256(*weights)
  assert len({line['weights'] for line in lines}) == 3


class Killed(BaseException):
  """Ends a run as a kill does: nothing is saved on the way out."""


class At:
  """An Action that does something at one step."""

  def __init__(self, step, act):
    self._step, self._act = step, act

  def next_due(self, step):
    return self._step if step < self._step else None

  def __call__(self, report):
    if report.step == self._step:
      self._act()


def kill():
  raise Killed


@pytest.mark.slow
@pytest.mark.parametrize(
  'killed_at', [5, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 8))]
)
def test_digests_of_a_killed_run_are_those_of_a_whole_one(tmp_path, killed_at):
  digests(1, steps=9).train(tmp_path / 'whole')
  actions = [tftrain.actions.Digests(1), At(killed_at, kill)]
  with pytest.raises(Killed):
    experiment(actions=actions, steps=9).train(tmp_path / 'parts')
  path = tmp_path / 'parts' / 'digests.jsonl'
  assert len(path.read_text().splitlines()) == killed_at
  with path.open('a') as file:
    file.write('{"step": 7, "batc')
  digests(1, steps=9).train(tmp_path / 'parts')
  whole = tmp_path / 'whole' / 'digests.jsonl'
  assert path.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_run_that_goes_back_takes_its_digests_back(tmp_path):
  class Once:
    """A loss that is not finite, told as a Trainer would."""

    seen = False

    def next_due(self, step):
      return 5 if step < 5 else None

    def __call__(self, report):
      if report.step == 5 and not Once.seen:
        Once.seen = True
        raise tftrain.errors.NonFiniteError('step 5', step=5)

  experiment(
    actions=[tftrain.actions.Digests(1), Once()],
    steps=8,
    rewind=tftrain.experiment.Rewind(skip_batches=2),
  ).train(tmp_path / 'run')
  lines = read_lines(tmp_path / 'run' / 'digests.jsonl')
  assert [line['step'] for line in lines] == list(range(1, 9))
  assert lines[3]['weights'] == lines[4]['weights'] == lines[2]['weights']
  assert lines[4]['weights'] != lines[5]['weights']


def cursor_data():
  x, y = cases.arrays()
  return tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'y': y}),
    8,
    filter=lambda example: example['x'][0] > 0,
    select=('x', 'y'),
  )


def dataset():
  return tf.data.Dataset.from_tensor_slices(cases.arrays()).batch(8)


def batches(resume):
  x, y = cases.arrays(24)
  parts = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
  return tftrain.data.DatasetPipeline(parts, resume=resume)


@pytest.mark.parametrize(
  ('data', 'known'),
  [
    (cursor_data(), True),
    (tftrain.data.DatasetPipeline(dataset), False),
    (batches('restart'), False),
    (batches('skip'), True),
    (train_data(), True),
  ],
)
def test_a_batch_has_a_digest_where_it_can_be_made_again(data, known, tmp_path):
  recipe = dataclasses.replace(digests(1, steps=3), train_data=lambda: data)
  recipe.train(tmp_path)
  found = [line['batch'] for line in read_lines(tmp_path / 'digests.jsonl')]
  taken = [sha256(('0', x), ('1', y)) for x, y in data.peek(3)]
  assert found == (taken if known else [None] * 3)


def test_where_a_text_ends_counts():
  one, other = (
    tftrain.data.DatasetPipeline([(np.array(texts, object),)], resume='skip')
    for texts in ([b'ab', b'c'], [b'a', b'bc'])
  )
  found = [digests_lib.batch_digest(data.peek(1)[0]) for data in (one, other)]
  assert len(set(found)) == 2


def test_digests_without_a_run_or_a_number_are_refused():
  with pytest.raises(tftrain.Error, match='at least 1, got 0'):
    tftrain.actions.Digests(0)
  with pytest.raises(tftrain.Error, match='Experiment.actions'):
    tftrain.actions.Digests(1)(cases.report(1))


def runs_of(tmp_path, **changes):
  """Two runs, the second with `changes`; what diff says of them."""
  experiment(actions=[tftrain.actions.Digests(2)]).train(tmp_path / 'a')
  fields = {'actions': [tftrain.actions.Digests(2)], **changes}
  experiment(**fields).train(tmp_path / 'b')
  return compare_runs.compare(tmp_path / 'a', tmp_path / 'b')


def test_two_equal_runs_are_the_same(tmp_path, capsys):
  found = runs_of(tmp_path)
  assert found.where is None and not found.causes
  assert (
    found.compared == '3 lines of digests.jsonl and 5 lines of metrics.jsonl'
  )
  assert compare_runs.main([str(tmp_path / 'a'), str(tmp_path / 'b')]) == 0
  assert capsys.readouterr().out.startswith('the same\n')


def other_order():
  return tftrain.Arrays(cases.arrays(seed=5), 8)


def test_other_data_show_in_the_batch_of_the_first_digest(tmp_path):
  found = runs_of(tmp_path, train_data=other_order)
  assert found.where.startswith('step 2: the batch, and the weights')
  (cause,) = found.causes
  assert cause.startswith('data: train: sha256: ')


@pytest.mark.slow
def test_another_rate_shows_in_the_weights_alone(tmp_path):
  def faster_later():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay
    return cases.supervised(keras.optimizers.Adam(schedule([2], [0.01, 0.1])))

  found = runs_of(tmp_path, task=faster_later)
  assert found.where == (
    'step 4: the weights; the batch is the same, in digests.jsonl (equal up '
    'to step 2)'
  )
  assert 'nothing else that is recorded differs' in str(found)


def test_the_metrics_say_it_where_there_are_no_digests(tmp_path):
  found = runs_of(tmp_path, seed=1, actions=[])
  assert found.where.startswith('step 2: train: loss ')
  assert found.compared == '5 lines of metrics.jsonl'
  assert found.causes == ['seed: 0 -> 1']


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_the_same(tmp_path):
  found = runs_of(tmp_path, steps=8)
  assert 'the same up to step 6; only one goes on, to 8' in found.where


def write_run(path, life, config='', lines=('{"step": 1, "source": "train"}',)):
  path.mkdir()
  (path / 'run.json').write_text(json.dumps({'attempts': [life]}))
  (path / 'config.gin').write_text(config)
  (path / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in lines))
  return path


def test_each_cause_is_a_line(tmp_path):
  one = {'tensorflow': '2.21.0', 'seed': 0, 'replicas': 1}
  git = {'commit': 'a' * 40, 'dirty': False, 'diff_sha256': None}
  a = write_run(
    tmp_path / 'a', {**one, 'git': git}, 'Adam.rate = 0.1\nX.y = \\\n    (1,\n'
  )
  other = {'tensorflow': '2.22.0', 'seed': 1, 'replicas': 2}
  git = {**git, 'dirty': True, 'diff_sha256': 'b' * 64}
  b = write_run(
    tmp_path / 'b',
    {**other, 'git': git, 'data': {'train': {}}},
    'Adam.rate = 0.2\nSGD.x = 3\nX.y = \\\n    (2,\n',
  )
  found = compare_runs.compare(a, b)
  assert found.where is None
  assert found.causes == [
    'config: Adam.rate: 0.1 -> 0.2',
    'config: SGD.x: not set -> 3',
    'config: X.y: (1, -> (2,',
    'code: aaaaaaaaaaaa -> aaaaaaaaaaaa with changes bbbbbbbbbbbb',
    'data: unknown -> recorded',
    'versions: tensorflow: 2.21.0 -> 2.22.0',
    'seed: 0 -> 1',
    'replicas: 1 -> 2',
  ]


def test_what_cannot_be_compared_is_one_line_and_code_2(tmp_path, capsys):
  a = write_run(tmp_path / 'a', {})
  b = write_run(tmp_path / 'b', {}, lines=['{"step": 2, "source": "train"}'])
  broken = write_run(tmp_path / 'c', {})
  (broken / 'run.json').write_text('{')
  for other, said in (
    (tmp_path / 'no', 'holds no run.json'),
    (b, 'no step in common'),
    (broken, 'is damaged'),
  ):
    assert compare_runs.main([str(a), str(other)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
  assert compare_runs.main([str(a)]) == 2


def test_diff_runs_without_tensorflow(tmp_path):
  a = write_run(tmp_path / 'a', {'seed': 0})
  b = write_run(
    tmp_path / 'b',
    {'seed': 1},
    lines=['{"step": 1, "source": "train", "loss": 2.0}'],
  )
  code = (
    'import runpy, sys\n'
    f'sys.argv = ["diff", {str(a)!r}, {str(b)!r}]\n'
    'try:\n'
    '  runpy.run_module("tftrain.debug.compare_runs", run_name="__main__")\n'
    'finally:\n  print("tensorflow" in sys.modules)\n'
  )
  ended = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert ended.returncode == 1, ended.stderr
  assert ended.stdout.splitlines()[-2:] == ['seed: 0 -> 1', 'False']


GIN = """
import tests.recipes

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


@pytest.mark.slow
def test_rerun_repeats_a_run_to_the_bit(commands, tmp_path):
  old = first_run(
    commands, tmp_path, '--local_devices=2', '--strategy=mirrored'
  )
  new = tmp_path / 'new'
  ended = commands.run('--mode=rerun', f'--run={old}', f'--model_dir={new}')
  assert ended.code == 0, ended
  assert f'Compared with {old}: the same' in ended.stdout
  assert 'warning: ' not in ended.stderr
  assert record(new)['replicas'] == 2
  for name in ('digests.jsonl', 'config.gin'):
    assert (new / name).read_bytes() == (old / name).read_bytes()
  # gin writes dictionaries sorted, so `small` is evaluated before `test` now.
  for run in (old, new):
    lines = read_lines(run / 'metrics.jsonl')
    assert [line['source'] for line in lines][:2] == ['train', 'train']
  assert sorted((old / 'metrics.jsonl').read_text().splitlines()) == sorted(
    (new / 'metrics.jsonl').read_text().splitlines()
  )


@pytest.mark.slow
def test_rerun_warns_of_what_is_not_as_it_was(commands, tmp_path):
  old = first_run(commands, tmp_path, '--mode', 'train')
  run = record(old)
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
  old = write_run(tmp_path / 'old', {})
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


def same_batches(one, other):
  for a, b in zip(one, other, strict=True):
    for leaf, expected in zip(a, b, strict=True):
      np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize('data', [train_data, cursor_data, dataset])
def test_the_first_batches_come_again_from_any_step(data):
  whole = tftrain.data.as_pipeline(data, training=True)
  few = tftrain.data.FirstBatches(whole, 3, repeat=True)
  first = whole.peek(3)
  expected = [first[step % 3] for step in range(8)]
  same_batches(few.peek(8), expected)
  for start in (1, 5):
    found = list(few.dataset(0, start).take(3).as_numpy_iterator())
    same_batches(found, expected[start : start + 3])
  assert few.repeats and few.num_steps is None


def test_batches_within_the_graph_repeat_too():
  few = tftrain.data.FirstBatches(train_data(), 2, repeat=True)
  found = [few.batch(0, tf.constant(step, tf.int64)) for step in range(5)]
  first = train_data().peek(2)
  same_batches(found, [first[step % 2] for step in range(5)])


def test_data_shorter_than_asked_for_repeat_what_there_is():
  parts = [(np.full([2, 1], i, 'float32'),) for i in range(2)]
  short = tftrain.data.DatasetPipeline(parts, repeat=False)
  few = tftrain.data.FirstBatches(short, 5, repeat=True)
  found = [int(b[0][0, 0]) for b in few.dataset(0, 5).take(4)]
  assert found == [1, 0, 1, 0]


@pytest.mark.slow
def test_a_limited_evaluation_is_that_of_its_first_batches(tmp_path):
  x, y = cases.arrays(seed=1)

  def some():
    return tftrain.Arrays((x[:16], y[:16]), 8, training=False)

  limited = experiment(limit_eval_batches=2, steps=2).train(tmp_path / 'a')
  expected = experiment(eval_data=some, steps=2).train(tmp_path / 'b')
  name = 'eval/test/loss'
  assert limited.scalars[name] == expected.scalars[name]
  whole = experiment(steps=2).train(tmp_path / 'c')
  assert whole.scalars[name] != expected.scalars[name]


def test_data_without_end_can_be_evaluated_on_when_limited(tmp_path):
  run = experiment(eval_data=train_data, limit_eval_batches=2, steps=1)
  assert 'eval/test/loss' in run.train(tmp_path / 'run').scalars
  made = tftrain.data.limited(train_data(), 3, 'eval')
  assert made.num_steps == 3 and made.num_examples == 24


@pytest.mark.slow
def test_the_same_few_batches_are_learned_by_heart(tmp_path, caplog):
  run = experiment(overfit_batches=1, steps=120, log_every=20, eval_every=120)
  result = run.train(tmp_path / 'run')
  assert result.scalars['train/accuracy'] == 1.0
  assert 'train: the first 1 batches, again and again' in caplog.text
  with pytest.raises(tftrain.Error, match='data: checkpoint'):
    experiment(overfit_batches=2, steps=130).train(tmp_path / 'run')


@pytest.mark.slow
def test_batches_below_one_and_another_value_are_refused(commands, tmp_path):
  path = tmp_path / 'recipe.gin'
  path.write_text(GIN)
  asked = [f'--gin_file={path}', f'--model_dir={tmp_path / "run"}']
  for flag in ('overfit_batches', 'limit_eval_batches'):
    ended = commands.run(*asked, f'--{flag}=0')
    assert ended.code == 2
    assert f'Experiment.{flag} must be a positive number, got 0' in ended.error
  assert not (tmp_path / 'run').exists()
  asked += ['--limit_eval_batches=1', '--overfit_batches=1']
  ended = commands.run(*asked)
  assert ended.code == 0 and 'eval/small: the first 1 batches' in ended.stderr
  other = commands.run(*asked, '--limit_eval_batches=2')
  assert other.code == 2
  assert 'Experiment.limit_eval_batches: 1 -> 2' in other.error


def test_prediction_reads_files_whole_where_evaluation_is_limited(tmp_path):
  x, y = cases.arrays(20)
  np.savez(tmp_path / 'x.npz', x=x, y=y)
  like = tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'y': y}),
    8,
    training=False,
    select=('x', 'y'),
  )
  few = tftrain.data.FirstBatches(like, 1)
  found = tftrain.data.open_input(tmp_path / 'x.npz', few)
  assert found.num_examples == 20 and len(found.peek(9)) == 3


def trace_of(run):
  (path,) = run.glob('train/plugins/profile/*/*.xplane.pb')
  return profiler._planes(path)


expm = tf.function(tf.linalg.expm)


def note():
  expm(tf.eye(2))


def count_of(run, kind):
  found = profiler.operations(trace_of(run))
  return sum(o.runs for o in found if o.kind == kind)


@pytest.mark.slow
def test_a_profile_is_of_exactly_its_steps(tmp_path, capsys):
  # At 3 and 6 there are evaluations and saves, which are not to be in it.
  others = [At(3, note), tftrain.actions.Profiler(4, 6), At(6, note)]
  experiment(actions=others, steps=9).train(tmp_path / 'run')
  run = tmp_path / 'run'
  assert count_of(run, 'SparseSoftmaxCrossEntropyWithLogits') == 3
  assert count_of(run, 'MatrixSolve') == 0
  text = (run / 'profile-4-6.txt').read_text()
  assert text in capsys.readouterr().out
  title, head, *rows = text.splitlines()
  assert title == 'Steps 4 to 6, the costliest operations:'
  assert head.split() == ['ms/step', 'share', 'runs', 'operation']
  assert len(rows) == 10
  events = b''.join(p.read_bytes() for p in (run / 'train').glob('events*'))
  assert b'profile-4-6.txt' in events


def test_a_save_is_waited_for_before_the_trace_begins(tmp_path, monkeypatch):
  write, start = format.write_checkpoint, tf.profiler.experimental.start
  run = experiment(actions=[tftrain.actions.Profiler(4, 5)]).prepare(
    tmp_path / 'run'
  )
  writing = []

  def slowly(*given):
    time.sleep(0.3)
    write(*given)

  def begin(directory):
    writing.append(run.checkpointer.is_writing)
    start(directory)

  # The save of step 3 comes before the trace, which begins last.
  monkeypatch.setattr(format, 'write_checkpoint', slowly)
  monkeypatch.setattr(tf.profiler.experimental, 'start', begin)
  run.train()
  assert writing == [False]


def test_what_happens_between_the_profiled_steps_is_in_the_trace(tmp_path):
  others = [At(5, note), tftrain.actions.Profiler(4, 6)]
  experiment(actions=others, steps=7).train(tmp_path / 'run')
  assert count_of(tmp_path / 'run', 'MatrixSolve') > 0


def space(*events, device='/host:CPU', line='tf_Compute'):
  """A plane with one line of events (name, begin, duration)."""
  plane = xplane_pb2.XPlane(name=device)
  made = plane.lines.add(name=line)
  for number, (name, begin, duration) in enumerate(events, 1):
    plane.event_metadata[number].name = name
    made.events.add(metadata_id=number, offset_ps=begin, duration_ps=duration)
  return plane


def test_the_time_of_an_operation_is_without_those_inside_it():
  plane = space(
    ('ExecutorState::Process', 0, 10**12),
    ('a/While:While', 0, 6 * 10**9),
    ('a/MatMul:MatMul', 10**9, 3 * 10**9),
    ('a/Add:AddV2', 4 * 10**9, 10**9),
    ('b/MatMul:MatMul', 8 * 10**9, 10**9),
  )
  gpu = space(('gemm', 0, 4 * 10**9), device='/device:GPU:0', line='Stream 1')
  sums = space(('1', 0, 10**12), device='/device:GPU:0', line='Steps')
  found = profiler.operations([plane, gpu, sums])
  assert [(o.name, o.kind, o.runs) for o in found] == [
    ('gemm', 'GPU:0', 1),
    ('a/MatMul', 'MatMul', 1),
    ('a/While', 'While', 1),
    ('a/Add', 'AddV2', 1),
    ('b/MatMul', 'MatMul', 1),
  ]
  assert [round(o.seconds * 1e3, 6) for o in found] == [4, 3, 2, 1, 1]
  assert profiler.table(found, 2).splitlines()[1] == (
    '     2.000  36.4%       1  GPU:0  gemm'
  )


@pytest.mark.parametrize('steps', ['1:3', '3:2', 'a:b', '3', '2:9', '-1:4'])
def test_a_bad_range_is_refused_before_step_1(commands, tmp_path, steps):
  path = tmp_path / 'recipe.gin'
  path.write_text(GIN)
  asked = [f'--gin_file={path}', f'--model_dir={tmp_path / "run"}']
  ended = commands.run(*asked, f'--profile_steps={steps}')
  assert ended.code == 2 and steps in ended.error
  assert not (tmp_path / 'run').exists()


def test_profile_steps_is_no_part_of_the_configuration(commands, tmp_path):
  old = first_run(commands, tmp_path, '--profile_steps=2:3')
  assert 'Profiler' not in (old / 'config.gin').read_text()
  assert (old / 'profile-2-3.txt').exists()


def test_another_profiler_is_said_in_a_line(tmp_path, caplog):
  tf.profiler.experimental.start(str(tmp_path / 'other'))
  try:
    result = experiment(actions=[tftrain.actions.Profiler(2, 3)]).train(
      tmp_path / 'run'
    )
  finally:
    tf.profiler.experimental.stop(save=False)
  assert result.step == 6
  said = [r for r in caplog.messages if 'have no profile' in r]
  assert said == ['Steps 2 to 3 have no profile: Another profiler is running..']


def test_a_run_resumed_behind_the_steps_has_no_profile(tmp_path, caplog):
  experiment(steps=3).train(tmp_path / 'run')
  profile = [tftrain.actions.Profiler(2, 5)]
  experiment(actions=profile).train(tmp_path / 'run')
  assert 'the run is at step 4 already' in caplog.text
  assert not list((tmp_path / 'run').glob('profile*'))


def test_a_stop_while_tracing_frees_the_profiler(tmp_path, caplog):
  run = experiment(actions=[tftrain.actions.Profiler(2, 5)]).prepare(
    tmp_path / 'run'
  )
  profile = next(
    a for a in run._actions if isinstance(a, tftrain.actions.Profiler)
  )
  profile(cases.report(1, last_step=6))
  assert profile.place < 0
  profile(cases.report(3, last_step=6, stopping=True))
  assert 'the run was stopped, or went back, at step 3' in caplog.text
  assert profile.next_due(3) is None
  assert not list((tmp_path / 'run').glob('profile*'))
  tf.profiler.experimental.start(str(tmp_path / 'free'))
  tf.profiler.experimental.stop(save=False)

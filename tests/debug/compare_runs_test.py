"""Comparing runs: the first different step of two runs, and the cause."""

import subprocess
import sys

import keras
import pytest

from tests.support import recorded_runs
from tests.support import small_tasks
import tftrain
from tftrain.debug import compare_runs


def runs_of(tmp_path, **changes):
  """Two runs, the second with `changes`; what diff says of them."""
  recorded_runs.experiment(actions=[tftrain.actions.Digests(2)]).train(
    tmp_path / 'a'
  )
  fields = {'actions': [tftrain.actions.Digests(2)], **changes}
  recorded_runs.experiment(**fields).train(tmp_path / 'b')
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
  return tftrain.Arrays(small_tasks.arrays(seed=5), 8)


def test_other_data_show_in_the_batch_of_the_first_digest(tmp_path):
  found = runs_of(tmp_path, train_data=other_order)
  assert found.where.startswith('step 2: the batch, and the weights')
  (cause,) = found.causes
  assert cause.startswith('data: train: sha256: ')


@pytest.mark.slow
def test_another_rate_shows_in_the_weights_alone(tmp_path):
  def faster_later():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay
    return small_tasks.supervised(
      keras.optimizers.Adam(schedule([2], [0.01, 0.1]))
    )

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


def test_each_cause_is_a_line(tmp_path):
  one = {'tensorflow': '2.21.0', 'seed': 0, 'replicas': 1}
  git = {'commit': 'a' * 40, 'dirty': False, 'diff_sha256': None}
  a = recorded_runs.write_run(
    tmp_path / 'a', {**one, 'git': git}, 'Adam.rate = 0.1\nX.y = \\\n    (1,\n'
  )
  other = {'tensorflow': '2.22.0', 'seed': 1, 'replicas': 2}
  git = {**git, 'dirty': True, 'diff_sha256': 'b' * 64}
  b = recorded_runs.write_run(
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
  a = recorded_runs.write_run(tmp_path / 'a', {})
  b = recorded_runs.write_run(
    tmp_path / 'b', {}, lines=['{"step": 2, "source": "train"}']
  )
  broken = recorded_runs.write_run(tmp_path / 'c', {})
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
  a = recorded_runs.write_run(tmp_path / 'a', {'seed': 0})
  b = recorded_runs.write_run(
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

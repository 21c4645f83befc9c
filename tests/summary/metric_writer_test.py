"""Metric writers: JSON lines, CSV and sinks, across restarts."""

import json
import pathlib

import keras
import pytest

from tests.support import shown_runs
from tests.support import small_tasks
import tftrain


def test_metrics_files_take_non_finite_values_as_strict_json(tmp_path):
  sink = tftrain.summary.MetricsFile(tmp_path)
  scalars = {'a': float('nan'), 'b': 1e300, 'c': float('-inf')}
  sink(small_tasks.report(1, source='eval/test', scalars=scalars))
  line = pathlib.Path(tmp_path, 'metrics.jsonl').read_text()
  assert 'NaN' not in line and 'Infinity' not in line
  assert json.loads(line)['b'] == 1e300


def test_lines_after_the_restored_step_are_taken_back(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  kept = '{"step": 10, "source": "train", "loss": 1.0}\n'
  path.write_text(
    kept + '{"step": 20, "source": "train", "loss": 9.0}\n' + '{"step": 30, "so'
  )
  sink = tftrain.summary.MetricsFile(tmp_path)
  for step, loss in ((20, 2.0), (20, 2.0), (30, 3.0)):
    scalars = {'loss': loss}
    sink(small_tasks.report(step, start_step=10, last_step=30, scalars=scalars))
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert path.read_text().startswith(kept)
  assert [line['loss'] for line in lines] == [1.0, 2.0, 2.0, 3.0]


class Kept(tftrain.summary.MetricWriter):
  def __init__(self, kept):
    self._kept = kept

  def write(self, report):
    self._kept.append((report.source, report.step, dict(report.scalars)))


def test_a_sink_hears_of_training_and_of_evaluations(tmp_path):
  kept = []
  shown_runs.train(tmp_path, actions=[Kept(kept)])
  assert [(source, step) for source, step, _ in kept] == [
    ('train', 2), ('eval/test', 2), ('train', 4), ('eval/test', 4)
  ]  # fmt: skip
  assert all(scalars['loss'] > 0 for _, _, scalars in kept)


class Broken(tftrain.summary.MetricWriter):
  tries = 0

  def write(self, report):
    Broken.tries += 1
    raise RuntimeError(f'no connection at step {report.step}')


def test_a_sink_that_fails_stops_nothing(tmp_path, caplog):
  Broken.tries = 0
  kept = []
  result = shown_runs.train(tmp_path, actions=[Broken(), Kept(kept)])
  assert result.step == 4 and len(kept) == Broken.tries == 4
  (line,) = [
    r.getMessage() for r in caplog.records if 'Broken' in r.getMessage()
  ]
  assert line == (
    'Reports to Broken cannot be written (no connection at step 2); training '
    'goes on without them.'
  )


def test_a_sink_needs_write():
  with pytest.raises(TypeError, match='write'):
    tftrain.summary.MetricWriter()


def csv_lines(path):
  return path.read_text().splitlines()


def test_a_csv_file_has_a_line_for_each_report(tmp_path):
  result = shown_runs.train(tmp_path, actions=[tftrain.summary.CsvWriter()])
  header, *lines = csv_lines(tmp_path / 'metrics.csv')
  assert header.startswith('step,source,loss,accuracy,')
  assert [line.split(',')[:2] for line in lines] == [
    ['2', 'train'], ['2', 'eval/test'], ['4', 'train'], ['4', 'eval/test']
  ]  # fmt: skip
  assert float(lines[-1].split(',')[2]) == result.scalars['eval/test/loss']


def test_a_csv_file_gets_columns_as_they_come(tmp_path):
  sink = tftrain.summary.CsvWriter(tmp_path / 'deep' / 'own.csv')
  for step, scalars in (
    (1, {'a': 1.0}),
    (2, {'a, "b"': float('nan')}),
    (3, {'a': 1e300, 'c': 2.5}),
  ):
    sink(small_tasks.report(step, scalars=scalars))
  assert csv_lines(tmp_path / 'deep' / 'own.csv') == [
    'step,source,a,"a, ""b""",c',
    '1,train,1.0,,',
    '2,train,,nan,',
    '3,train,1e+300,,2.5',
  ]


def test_a_resumed_run_takes_lines_back(tmp_path):
  path = tmp_path / 'own.csv'
  path.write_text('step,source,a\n10,train,1.0\n20,train,9.0\n30,tr')
  sink = tftrain.summary.CsvWriter(path)
  for step, value in ((10, 7.0), (20, 2.0), (30, 3.0)):
    sink(small_tasks.report(step, start_step=10, scalars={'a': value}))
  lines = ['step,source,a', '10,train,1.0', '20,train,2.0', '30,train,3.0']
  assert csv_lines(path) == lines
  # The run goes back to step 10, twice.
  for value in (4.0, 5.0):
    sink(small_tasks.report(20, start_step=10, scalars={'a': value}))
    sink(small_tasks.report(25, start_step=10, scalars={'a': value}))
  assert csv_lines(path) == [
    *lines[:2], '20,train,5.0', '25,train,5.0'
  ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_the_lines_of_an_unbroken_one(tmp_path):
  def go(name, *steps):
    for last in steps:
      keras.utils.set_random_seed(0)
      shown_runs.train(
        tmp_path / name,
        steps=last,
        checkpoint_every=2,
        actions=[tftrain.summary.CsvWriter()],
      )
    return (tmp_path / name / 'metrics.csv').read_text()

  assert go('broken', 4, 8) == go('whole', 8)


def test_a_file_that_is_something_else_is_left_alone(tmp_path, caplog):
  path = tmp_path / 'own.csv'
  path.write_text('precious,data\n1,2\n')
  sink = tftrain.summary.CsvWriter(path)
  sink(small_tasks.report(1, scalars={'a': 1.0}))
  assert path.read_text() == 'precious,data\n1,2\n'
  assert 'own.csv is no file of a CsvWriter; remove it' in caplog.text

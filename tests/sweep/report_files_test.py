"""The report of a sweep: files, TensorBoard's tab, and the page."""

import csv
import pathlib
import subprocess
import sys

import pytest

from tests.support import paths
from tests.support import sweep_commands
from tftrain.sweep import _importance
from tftrain.sweep import _ranking
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import report_files
from tftrain.sweep import results as results_lib

_SWEEP = """
  Sweep.space = [
    {'LR': [0.1, 0.2, 0.0001], 'KIND': ['a|b', '<c>']},
    {'LR': [0.25], 'WIDE': [True]},
    {'LR': [0.9], 'DO': ['nan']},
    {'LR': [0.8], 'DO': ['fail']}]
  Sweep.seeds = [0, 1]
"""


@pytest.fixture(scope='module')
def sweep_dir(tmp_path_factory):
  """A sweep that has ended, most of it well."""
  directory = tmp_path_factory.mktemp('sweep')
  sweep_dir = sweep_commands.plan(directory, _SWEEP)
  code, _, err = sweep_commands.run(sweep_dir, '--parallel=2', '--keep_going')
  assert code == 1, err
  return sweep_dir


@pytest.fixture(scope='module')
def written(sweep_dir):
  code, out, err = sweep_commands.sweep('report', f'--sweep_dir={sweep_dir}')
  assert code == 0, err
  return out


def ranked(sweep_dir):
  plan = plan_lib.read(sweep_dir)
  return plan, _ranking.rank(plan, results_lib.read(plan))


def test_the_best_is_named(sweep_dir, written):
  assert written.splitlines()[0] == (
    'Best: LR = 0.25, WIDE = True: eval/test/accuracy 1 ± 0 (mean of 2 seeds).'
  )
  text = (sweep_dir / 'results.md').read_text()
  assert written.splitlines()[0] in text


def test_assignments_are_ranked_and_seeds_are_not(sweep_dir):
  _, rows = ranked(sweep_dir)
  assert [(row.status, row.values['LR']) for row in rows] == [
    ('done', 0.25),
    ('done', 0.2),
    ('done', 0.2),
    ('done', 0.1),
    ('done', 0.1),
    ('done', 0.0001),
    ('done', 0.0001),
    ('diverged', 0.9),
    ('failed', 0.8),
  ]
  assert all(len(row.repeats) == 2 for row in rows)


def test_means_and_deviations_are_those_of_the_seeds(sweep_dir):
  plan, rows = ranked(sweep_dir)
  row = rows[0]
  values = [0.5, 0.8]
  repeats = [
    results_lib.dataclasses.replace(result, history=[(1, 0.9), (4, value)])
    for result, value in zip(row.repeats, values, strict=True)
  ]
  made = _ranking._row(plan, repeats)
  assert made.mean == pytest.approx(0.65)
  assert made.deviation == pytest.approx(0.3 / 2**0.5)
  assert _ranking.best_step(repeats[0], 'max') == 1
  assert _ranking.best_step(repeats[0], 'min') == 4


def test_the_csv_has_a_line_for_each_trial(sweep_dir, written):
  with (sweep_dir / 'results.csv').open(newline='') as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == 18
  assert {int(line['trial']) for line in lines} == set(range(18))
  first = lines[0]
  assert float(first['value']) == 1.0 and first['WIDE'] == 'True'
  assert first['KIND'] == '' and first['best_step'] == '4'
  assert {line['KIND'] for line in lines} == {'', 'a|b', '<c>'}
  failed = [line for line in lines if line['status'] == 'failed']
  assert all('no such thing in 1 ways' in line['error'] for line in failed)


def test_the_markdown_stays_one_table(sweep_dir, written):
  text = (sweep_dir / 'results.md').read_text()
  table = [line for line in text.splitlines() if line.startswith('|')]
  assert len({line.replace('\\|', '').count('|') for line in table}) == 1
  assert r'a\|b' in text
  assert 'no such thing in 1 ways' in text.partition('## What went wrong')[2]


def test_the_page_is_whole_and_quotes_what_it_shows(sweep_dir, written):
  page = (sweep_dir / 'results.html').read_text()
  assert '<c>' not in page.partition('<table>')[2].partition('</table>')[0]
  for heading in (
    'All parameters at once',
    'eval/test/accuracy against LR',
    'eval/test/accuracy against KIND',
    'Learning curves',
  ):
    assert f'<h2>{heading}</h2>' in page
  assert 'src="http' not in page and '<link' not in page.partition('<body>')[2]


def test_what_matters_is_told_from_what_does_not(sweep_dir):
  pytest.importorskip('optuna')
  plan, rows = ranked(sweep_dir)
  told = [row for row in rows if 'KIND' in row.values]
  shares = _importance.of(told, ['LR', 'KIND', 'WIDE'], plan.goal)
  assert set(shares) == {'LR', 'KIND'}
  assert shares['LR'] > 0.9


@pytest.mark.slow
def test_tensorboard_is_told_what_was_varied(sweep_dir, written):
  """What TensorBoard's own reader makes of a file that it did not write."""
  code = (
    'import sys\n'
    'from tensorboard.backend.event_processing import event_file_loader\n'
    'from tensorboard.plugins.hparams import metadata\n'
    'loader = event_file_loader.EventFileLoader(sys.argv[1])\n'
    'values = [v for e in loader.Load() for v in e.summary.value]\n'
    'content = values[0].metadata.plugin_data.content\n'
    'found = metadata.parse_experiment_plugin_data(content)\n'
    'print([(h.name, len(h.domain_discrete)) for h in found.hparam_infos])\n'
    'print([(m.name.group, m.name.tag) for m in found.metric_infos])\n'
  )
  path = sweep_dir / 'events.out.tfevents.0.sweep'
  found = subprocess.run(
    [sys.executable, '-c', code, path], capture_output=True, text=True
  )
  names, metrics = found.stdout.splitlines()
  assert names == "[('LR', 6), ('KIND', 2), ('WIDE', 1), ('DO', 2)]"
  assert metrics == "[('eval/test', 'accuracy'), ('train', 'loss')]"


def test_a_report_needs_no_tensorflow(sweep_dir):
  code = (
    'import pathlib, sys; from tftrain.sweep import plan, report_files; '
    'list(report_files.write(plan.read(pathlib.Path(sys.argv[1])))); '
    "print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
  )
  found = subprocess.run(
    [sys.executable, '-c', code, sweep_dir],
    capture_output=True,
    cwd=paths.ROOT,
  )
  assert found.stdout == b'[]\n', found.stderr


def test_without_plotly_the_tables_are_written(sweep_dir, monkeypatch):
  monkeypatch.setitem(sys.modules, 'plotly', None)
  monkeypatch.delitem(sys.modules, 'tftrain.sweep._html_report', raising=False)
  monkeypatch.delattr('tftrain.sweep._html_report', raising=False)
  lines = list(report_files.write(plan_lib.read(sweep_dir)))
  assert "pip install 'tftrain[report]'" in lines[-1]


def test_a_sweep_that_has_not_begun_has_no_report(tmp_path):
  sweep_dir = sweep_commands.plan(tmp_path, "Sweep.space = {'LR': [0.1]}\n")
  code, _, err = sweep_commands.sweep('report', f'--sweep_dir={sweep_dir}')
  assert code == 2
  assert err == (
    f'error: no trial of {sweep_dir} has begun; start tftrain-sweep run first\n'
  )
  assert not (pathlib.Path(sweep_dir) / 'results.csv').exists()

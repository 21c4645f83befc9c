"""The report of a sweep: CSV, Markdown, HTML and TensorBoard's HPARAMS tab."""

from collections.abc import Iterator
from collections.abc import Sequence
import csv
import io
import time
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import summary_v2
from tensorboard.summary.writer import record_writer

from tftrain import errors
from tftrain.platform import files
from tftrain.sweep import _ranking
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib

_COLUMNS = (
  'rank',
  'trial',
  'status',
  'value',
  'best_step',
  'step',
  'seconds',
  'seed',
)
_ENDS = ('error', 'directory')


def write(plan: plan_lib.Plan) -> Iterator[str]:
  """Writes the report into the sweep's directory; yields lines about it.

  The report may be written at any time, also while trials run.

  Raises:
    InputError: If no trial has started.
  """
  found = results_lib.read(plan)
  if not any(result.bindings and result.facts for result in found):
    raise errors.InputError(
      f'no trial of {plan.sweep_dir} has begun; start tftrain-sweep run first'
    )
  rows = _ranking.rank(plan, found)
  with files.convert_os_errors(plan.sweep_dir):
    files.write_text(plan.sweep_dir / 'results.csv', table(plan, rows))
    files.write_text(plan.sweep_dir / 'results.md', text(plan, rows))
    _write_tab(plan, rows)
  yield best(plan, rows)
  yield f'{plan.sweep_dir / "results.md"}, and results.csv beside it'
  pages = _import_pages()
  if pages is None:
    yield (
      'results.html is not drawn, as plotly is not installed: pip install '
      "'tftrain[report]'"
    )
    return
  with files.convert_os_errors(plan.sweep_dir):
    page = pages.page(plan, rows, best(plan, rows))
    files.write_text(plan.sweep_dir / 'results.html', page)
  yield f'{plan.sweep_dir / "results.html"}'


def _import_pages() -> Any:
  """Returns the module of the HTML report; None without plotly, an extra."""
  try:
    from tftrain.sweep import _html_report
  except ModuleNotFoundError as error:
    if (error.name or '').partition('.')[0] != 'plotly':
      raise
    return None
  return _html_report


def best(plan: plan_lib.Plan, rows: Sequence[_ranking.Row]) -> str:
  """Returns one line about the best assignment."""
  first = rows[0]
  if first.status != 'done':
    return f'No assignment is done yet; {plan.metric} decides.'
  what = ', '.join(f'{name} = {value}' for name, value in first.values.items())
  many = len(first.repeats)
  of = f' (mean of {many} seeds)' if many > 1 else ''
  return f'Best: {what}: {plan.metric} {first.score}{of}.'


def table(plan: plan_lib.Plan, rows: Sequence[_ranking.Row]) -> str:
  """Returns a CSV table with a line for each trial."""
  varied = _ranking.names(rows)
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator='\n')
  writer.writerow([*_COLUMNS, *varied, *_ENDS])
  for rank, row in enumerate(rows, 1):
    for result in row.repeats:
      value = result.value(plan.goal)
      writer.writerow(
        [
          rank,
          result.trial.index,
          result.status,
          '' if value is None else repr(value),
          _ranking.best_step(result, plan.goal),
          result.step,
          f'{result.seconds:.1f}',
          '' if result.trial.seed is None else result.trial.seed,
          *(row.values.get(name, '') for name in varied),
          result.facts.get('error', ''),
          result.directory.name,
        ]
      )
  return stream.getvalue()


def text(plan: plan_lib.Plan, rows: Sequence[_ranking.Row]) -> str:
  """Returns the ranking in Markdown."""
  varied = _ranking.names(rows)
  head = ['rank', plan.metric, *varied, 'best step', 'status', 'seconds', '']
  lines = [
    f'# {plan.sweep_dir.name}',
    '',
    best(plan, rows),
    '',
    _markdown_row(head),
    _markdown_row(['---'] * len(head)),
  ]
  for rank, row in enumerate(rows, 1):
    steps = [str(_ranking.best_step(r, plan.goal)) for r in row.repeats]
    lines.append(
      _markdown_row(
        [
          str(rank),
          row.score,
          *(str(row.values.get(name, '')) for name in varied),
          ', '.join(steps),
          row.status,
          f'{row.seconds:.0f}',
          ', '.join(r.directory.name for r in row.repeats),
        ]
      )
    )
  ended = [r for row in rows for r in row.repeats if 'error' in r.facts]
  if ended:
    lines += ['', '## What went wrong', '']
    lines += [f'- {r.directory.name}: {r.facts["error"]}' for r in ended]
  return '\n'.join(lines) + '\n'


def _markdown_row(cells: Sequence[str]) -> str:
  plain = (' '.join(cell.split()).replace('|', '\\|') for cell in cells)
  return f'| {" | ".join(plain)} |'


def _write_tab(plan: plan_lib.Plan, rows: Sequence[_ranking.Row]) -> None:
  """Writes the columns of the HPARAMS tab; each trial writes its row.

  Frames the records itself, as TensorBoard's event writer needs TensorFlow.
  """
  source, _, tag = plan.metric.rpartition('/')
  config = summary_v2.hparams_config_pb(
    hparams=[
      summary_v2.HParam(name, _domain(name, rows))
      for name in _ranking.names(rows)
    ],
    metrics=[
      summary_v2.Metric(tag, group=source, display_name=plan.metric),
      summary_v2.Metric('loss', group='train', display_name='train/loss'),
    ],
  )
  stream = io.BytesIO()
  writer = record_writer.RecordWriter(stream)
  now = time.time()
  for event in (
    event_pb2.Event(wall_time=now, file_version='brain.Event:2'),
    event_pb2.Event(wall_time=now, summary=config),
  ):
    writer.write(event.SerializeToString())
  files.write_bytes(
    plan.sweep_dir / 'events.out.tfevents.0.sweep', stream.getvalue()
  )


def _domain(name: str, rows: Sequence[_ranking.Row]) -> summary_v2.Domain:
  """Returns the values of a parameter in one type, as TensorBoard requires."""
  values = {row.values[name] for row in rows if name in row.values}
  kinds = {type(value) for value in values}
  if kinds <= {int, float}:
    return summary_v2.Discrete(sorted({float(value) for value in values}))
  if kinds == {bool}:
    return summary_v2.Discrete(sorted(values))
  return summary_v2.Discrete(sorted(map(str, values)))

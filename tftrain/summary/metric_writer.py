"""Metric writers: store Reports outside TensorBoard."""

import abc
import csv
import io
import os
import pathlib
from typing import Any

from tftrain import errors
from tftrain.platform import best_effort
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.report import action as action_lib
from tftrain.report import report as report_lib


class MetricWriter(action_lib.Action, abc.ABC):
  """Base class of metric writers: Actions (callbacks) that store Reports.

  Subclasses implement `write`. An exception in `write` is logged, at most once
  a minute, and the run continues without the Report.

  >>> class Printed(MetricWriter):
  ...   def write(self, report):
  ...     print(report.source, report.step, dict(report.scalars))
  >>> Experiment(..., actions=[Printed()])
  """

  part = 'summaries'
  hears_all = True
  """An Experiment also passes the Reports of evaluations."""

  _best_effort: best_effort.BestEffort | None = None

  @abc.abstractmethod
  def write(self, report: report_lib.Report) -> None:
    """Writes one Report; its `scalars` are never empty."""

  def __call__(self, report: report_lib.Report) -> None:
    if not report.scalars:
      return
    if self._best_effort is None:  # subclasses need not call __init__
      what = f'Reports to {type(self).__name__}'
      self._best_effort = best_effort.BestEffort(what, (Exception,))
    with self._best_effort():
      self.write(report)


class CsvWriter(MetricWriter):
  """Writes a CSV file with the step, the source and a column per metric.

  A metric that first appears later adds a column. A resumed run removes the
  lines after the step from which it resumes, as in `metrics.jsonl`.

  Args:
    path: Path of the file, relative to model_dir or absolute.
  """

  def __init__(self, path: str | os.PathLike[str] = 'metrics.csv'):
    self._path = pathlib.Path(path)
    self._columns: list[str] = []
    self._written: set[tuple[str, str]] = set()
    self._begun_at: int | None = None
    self._last_step = 0

  def bind(self, run: report_lib.BoundRun) -> None:
    self._path = run.model_dir / self._path

  def write(self, report: report_lib.Report) -> None:
    # The run starts, resumes, or is rewound to an earlier step.
    if report.start_step != self._begun_at or report.step < self._last_step:
      self._begin(report.start_step)
    self._last_step = report.step
    row = {'step': str(report.step), 'source': report.source}
    if (row['step'], row['source']) in self._written:
      return  # a finished run that is started again
    row |= {tag: repr(value) for tag, value in report.scalars.items()}
    new = [name for name in row if name not in self._columns]
    if new:
      self._rewrite(self._read(), [*self._columns, *new])
    jsonl.append_line(
      self._path, _csv_line(row.get(c, '') for c in self._columns)
    )
    self._written.add((row['step'], row['source']))

  def _begin(self, step: int) -> None:
    """Removes the lines after `step`, and a partial last line."""
    rows = [row for row in self._read() if _step_of(row) <= step]
    columns = list(rows[0]) if rows else ['step', 'source']
    files.make_directory(self._path.parent, 'path for CsvWriter')
    self._rewrite(rows, columns)
    self._written = {(row['step'], row['source']) for row in rows}
    self._begun_at = step

  def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
    lines = [columns, *([row.get(c, '') for c in columns] for row in rows)]
    files.write_text(
      self._path, ''.join(_csv_line(line) + '\n' for line in lines)
    )
    self._columns = columns

  def _read(self) -> list[dict[str, str]]:
    """Returns column -> value for each whole line."""
    if not self._path.exists():
      return []
    with files.convert_os_errors(self._path):
      text = self._path.read_text(encoding='utf-8', errors='replace')
    found = list(csv.reader(io.StringIO(text, newline='')))
    if not found or found[0][:2] != ['step', 'source']:
      raise errors.RunDirectoryError(
        f'{self._path} is no file of a CsvWriter; remove it, or give another '
        'path'
      )
    whole = found[1:] if text.endswith('\n') else found[1:-1]
    return [
      dict(zip(found[0], line, strict=True))
      for line in whole
      if len(line) == len(found[0])
    ]


def _csv_line(values: Any) -> str:
  into = io.StringIO()
  csv.writer(into, lineterminator='').writerow(values)
  return into.getvalue()


def _step_of(row: dict[str, str]) -> float:
  try:
    return int(row['step'])
  except ValueError:
    return float('inf')

"""Sinks: where Reports go beside TensorBoard."""

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
from tftrain.report import report as report_lib


class MetricWriter(abc.ABC):
  """Writes the Reports of training and evaluation somewhere; an Action.

  Subclass it and write `write`. What `write` raises is warned of, once a
  minute, and the run goes on without it.

  >>> class Printed(MetricWriter):
  ...   def write(self, report):
  ...     print(report.source, report.step, dict(report.scalars))
  >>> Experiment(..., actions=[Printed()])
  """

  part = 'summaries'
  hears_all = True
  """An Experiment gives it the Reports of evaluations, too."""

  _best_effort: best_effort.BestEffort | None = None

  @abc.abstractmethod
  def write(self, report: report_lib.Report) -> None:
    """Writes one Report; its `scalars` are never empty."""

  def __call__(self, report: report_lib.Report) -> None:
    if not report.scalars:
      return
    if (
      self._best_effort is None
    ):  # made here: subclasses need not call __init__
      what = f'Reports to {type(self).__name__}'
      self._best_effort = best_effort.BestEffort(what, (Exception,))
    with self._best_effort():
      self.write(report)


class CsvWriter(MetricWriter):
  """A file of comma-separated values: step, source, and a column per metric.

  A metric that appears later gets a column of its own then. A resumed run takes
  back the lines after the step it goes on from, as `metrics.jsonl` does.

  Args:
    path: Its name; what is relative lies in model_dir.
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
    # A run begins, or goes on from an earlier step than it had come to.
    if report.start_step != self._begun_at or report.step < self._last_step:
      self._begin(report.start_step)
    self._last_step = report.step
    row = {'step': str(report.step), 'source': report.source}
    if (row['step'], row['source']) in self._written:
      return  # a run that ended here is asked to end here again
    row |= {tag: repr(value) for tag, value in report.scalars.items()}
    new = [name for name in row if name not in self._columns]
    if new:
      self._rewrite(self._read(), [*self._columns, *new])
    jsonl.append_line(self._path, _line(row.get(c, '') for c in self._columns))
    self._written.add((row['step'], row['source']))

  def _begin(self, step: int) -> None:
    """Takes back the lines after `step`, and what a kill left of one."""
    rows = [row for row in self._read() if _step_of(row) <= step]
    columns = list(rows[0]) if rows else ['step', 'source']
    files.make_directory(self._path.parent, 'path for CsvWriter')
    self._rewrite(rows, columns)
    self._written = {(row['step'], row['source']) for row in rows}
    self._begun_at = step

  def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
    lines = [columns, *([row.get(c, '') for c in columns] for row in rows)]
    files.write_text(self._path, ''.join(_line(line) + '\n' for line in lines))
    self._columns = columns

  def _read(self) -> list[dict[str, str]]:
    """Column -> value, of each whole line."""
    if not self._path.exists():
      return []
    with files.explained(self._path):
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


def _line(values: Any) -> str:
  into = io.StringIO()
  csv.writer(into, lineterminator='').writerow(values)
  return into.getvalue()


def _step_of(row: dict[str, str]) -> float:
  try:
    return int(row['step'])
  except ValueError:
    return float('inf')

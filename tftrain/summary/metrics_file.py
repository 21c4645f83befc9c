"""MetricsFile: Reports as JSON lines, consistent after a resume."""

from collections.abc import Collection
import pathlib

from tftrain import errors
from tftrain.platform import best_effort
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.report import action as action_lib
from tftrain.report import report as report_lib


class MetricsFile(action_lib.Action):
  """Appends each Report to `metrics.jsonl`, and its timing to `timing.jsonl`.

  A resumed run removes the lines after the restored checkpoint. Its
  `metrics.jsonl` is therefore byte-identical to that of an uninterrupted run.

  Args:
    model_dir: The run's directory.
    name: Name of the metrics file.
  """

  part = 'summaries'

  def __init__(
    self, model_dir: str | pathlib.Path, name: str = 'metrics.jsonl'
  ):
    path = files.run_directory(model_dir) / name
    self._metrics = jsonl.ResumableLog(path, ('step', 'source'))
    self._timing = path.with_name('timing.jsonl')
    self._best_effort = best_effort.BestEffort(
      str(self._timing), (OSError, errors.RunDirectoryError)
    )
    self._begun = False

  def begin(self, step: int) -> Collection[jsonl.Key]:
    """Removes the lines after `step`; returns (step, source) of the others."""
    self._begun = True
    return self._metrics.resume(step)

  def sync(self) -> None:
    """Syncs the metrics to disk, so that they survive a power cut."""
    files.sync(self._metrics.path)

  def __call__(self, report: report_lib.Report) -> None:
    if not report.scalars:
      return
    if not self._begun:
      self.begin(report.start_step)
    head = {'step': report.step, 'source': report.source}
    if not self._metrics.append({**head, **report.scalars}):
      return  # a finished run that is started again
    with self._best_effort():  # timing is best-effort
      timing = {k: float(f'{v:.6g}') for k, v in report.timing.items()}
      jsonl.append_line(self._timing, jsonl.to_json({**head, **timing}))

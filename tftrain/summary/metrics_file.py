"""MetricsFile: reports as lines of JSON, taken back when a run resumes."""

from collections.abc import Collection
import pathlib

from tftrain import errors
from tftrain.platform import best_effort
from tftrain.platform import files
from tftrain.platform import jsonl
from tftrain.report import report as report_lib


class MetricsFile:
  """Appends each Report to `metrics.jsonl`, and its timing to `timing.jsonl`.

  `metrics.jsonl` of a run that was killed and resumed equals that of one that
  was not, byte for byte: lines after the restored checkpoint are taken back.
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
    """Takes back the lines after `step`; (step, source) of those that stay."""
    self._begun = True
    return self._metrics.resume(step)

  def sync(self) -> None:
    """Makes what was written survive a power cut."""
    files.sync(self._metrics.path)

  def __call__(self, report: report_lib.Report) -> None:
    if not report.scalars:
      return
    if not self._begun:
      self.begin(report.start_step)
    head = {'step': report.step, 'source': report.source}
    if not self._metrics.append({**head, **report.scalars}):
      return  # a run that ended here is asked to end here again
    with self._best_effort():  # what a clock says is not worth a run
      timing = {k: float(f'{v:.6g}') for k, v in report.timing.items()}
      jsonl.append_line(self._timing, jsonl.to_json({**head, **timing}))

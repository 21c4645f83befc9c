"""MetricsFile: reports as lines of JSON, taken back when a run resumes."""

from collections.abc import Collection
from collections.abc import Mapping
import json
import math
import pathlib
from typing import Any

from tftrain import errors
from tftrain.platform import best_effort
from tftrain.platform import files
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
    self._metrics = files.run_directory(model_dir) / name
    self._timing = self._metrics.with_name('timing.jsonl')
    self._forgiving = best_effort.Forgiving(
      str(self._timing), (OSError, errors.RunDirectoryError)
    )
    self._written: set[tuple[int, str]] | None = None

  def begin(self, step: int) -> Collection[tuple[int, str]]:
    """Takes back the lines after `step`; (step, source) of those that stay."""
    keep_until(self._metrics, step)
    self._written = {
      (values['step'], values['source']) for values in read_lines(self._metrics)
    }
    return self._written

  def sync(self) -> None:
    """Makes what was written survive a power cut."""
    files.sync(self._metrics)

  def __call__(self, report: report_lib.Report) -> None:
    if not report.scalars:
      return
    if self._written is None:
      self.begin(report.start_step)
    assert self._written is not None
    if (report.step, report.source) in self._written:
      return  # a run that ended here is asked to end here again
    head = {'step': report.step, 'source': report.source}
    files.append_line(self._metrics, _to_json({**head, **report.scalars}))
    with self._forgiving():  # what a clock says is not worth a run
      timing = {k: float(f'{v:.6g}') for k, v in report.timing.items()}
      files.append_line(self._timing, _to_json({**head, **timing}))


def keep_until(path: pathlib.Path, step: int) -> None:
  """Takes back the lines after `step`."""
  files.keep_lines(path, lambda line: _step_of(line) <= step)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; half a line at its end is left out."""
  if not path.exists():
    return []
  with files.explained(path):
    text = path.read_text(encoding='utf-8', errors='replace')
  lines = text.splitlines()
  return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def _step_of(line: str) -> float:
  try:
    return float(json.loads(line)['step'])
  except (ValueError, KeyError, TypeError):
    return math.inf  # half a line: it is written again


def _to_json(values: Mapping[str, Any]) -> str:
  """Strict JSON: NaN and the infinities become strings."""
  clean = {
    key: str(value) if isinstance(value, float) and not math.isfinite(value)
    else value
    for key, value in values.items()
  }  # fmt: skip
  return json.dumps(clean, allow_nan=False)

"""A Report becomes TensorBoard curves and lines of JSON."""

from collections.abc import Mapping
import json
import math
import pathlib
from typing import Any

import tensorflow as tf

from tftrain import files
from tftrain import reports


class SummaryWriter:
  """Writes scalars to `model_dir/<source>/`, for TensorBoard.

  Train and evaluation use the same tags in directories of their own, so
  `tensorboard --logdir model_dir` shows both on one chart. What a clock says
  goes under `time/`.
  """

  def __init__(self, model_dir: str | pathlib.Path):
    self._model_dir = pathlib.Path(model_dir)
    self._writers: dict[str, Any] = {}

  def __call__(self, report: reports.Report) -> None:
    if not report.scalars:
      return
    timing = {f'time/{tag}': value for tag, value in report.timing.items()}
    values = [_scalar(*item) for item in {**report.scalars, **timing}.items()]
    summary = tf.compat.v1.Summary(value=values)
    with self._writer(report.source).as_default(step=report.step):
      tf.summary.experimental.write_raw_pb(summary.SerializeToString())
      for tag, artifact in report.artifacts.items():
        _write_artifact(tag, artifact)

  def write_text(self, tag: str, text: str) -> None:
    """Shows a text, such as the configuration, in TensorBoard's Text tab."""
    indented = ''.join(f'    {line}\n' for line in text.splitlines())
    with self._writer('train').as_default(step=0):
      tf.summary.text(tag, indented)

  def flush(self) -> None:
    for writer in self._writers.values():
      writer.flush()

  def close(self) -> None:
    while self._writers:
      self._writers.popitem()[1].close()

  def _writer(self, source: str) -> Any:
    if source not in self._writers:
      directory = self._model_dir / source
      files.make_directory(directory)
      self._writers[source] = tf.summary.create_file_writer(str(directory))
    return self._writers[source]


def _write_artifact(tag: str, artifact: Any) -> None:
  """Shows a text as Markdown, and anything else as images."""
  if isinstance(artifact, str):
    tf.summary.text(tag, artifact)
  else:
    tf.summary.image(tag, artifact, max_outputs=len(artifact))


def _scalar(tag: str, value: float) -> Any:
  """What tf.summary.scalar writes; one op for all of a Report's scalars is ten
  times faster than one call for each."""
  return tf.compat.v1.Summary.Value(
    tag=tag,
    tensor={'dtype': tf.float32.as_datatype_enum, 'float_val': [value]},
    metadata={'plugin_data': {'plugin_name': 'scalars'}},
  )


class MetricsFile:
  """Appends each Report to `metrics.jsonl`, and its timing to `timing.jsonl`.

  `metrics.jsonl` of a run that was killed and resumed equals that of one that
  was not, byte for byte: lines after the restored checkpoint are taken back.
  """

  def __init__(self, model_dir: str | pathlib.Path):
    self._metrics = pathlib.Path(model_dir) / 'metrics.jsonl'
    self._timing = pathlib.Path(model_dir) / 'timing.jsonl'
    self._rewound = False
    self._written: set[tuple[Any, ...]] = set()

  def __call__(self, report: reports.Report) -> None:
    if not report.scalars:
      return
    if not self._rewound:
      self._rewind(report.start_step)
    if (report.step, report.source) in self._written:
      return  # a run that ended here is asked to end here again
    head = {'step': report.step, 'source': report.source}
    files.append_line(self._metrics, _to_json({**head, **report.scalars}))
    files.append_line(self._timing, _to_json({**head, **report.timing}))

  def _rewind(self, start_step: int) -> None:
    self._rewound = True
    files.keep_lines(self._metrics, lambda line: _step_of(line) <= start_step)
    self._written = {
      (values['step'], values['source']) for values in read_lines(self._metrics)
    }


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl; half a line at its end is left out."""
  if not path.exists():
    return []
  lines = path.read_text(encoding='utf-8').splitlines()
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

"""SummaryWriter: reports as TensorBoard summaries."""

from collections.abc import Collection
from collections.abc import Mapping
import contextlib
import pathlib
import time
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer import event_file_writer
import tensorflow as tf

from tftrain import errors
from tftrain.platform import best_effort
from tftrain.platform import files
from tftrain.report import report as report_lib
from tftrain.summary import artifacts as artifacts_lib


class SummaryWriter:
  """Writes scalars to `model_dir/<source>/`, for TensorBoard.

  Train and evaluation use the same tags in directories of their own, so
  `tensorboard --logdir model_dir` shows both on one chart. What a clock says
  goes under `time/`.

  What cannot be written is not worth a run: it is said once a minute, and
  training goes on.
  """

  part = 'summaries'

  def __init__(self, model_dir: str | pathlib.Path):
    self._model_dir = files.run_directory(model_dir)
    self._writers: dict[str, Any] = {}
    self._first_step = 0
    self._published: Collection[tuple[int, str]] = ()
    self._best_effort = best_effort.BestEffort(
      f'Summaries below {self._model_dir}',
      (OSError, errors.RunDirectoryError, tf.errors.OpError),
    )

  def begin(
    self, step: int | None, published: Collection[tuple[int, str]] = ()
  ) -> None:
    """Says that a life of the run begins.

    Whatever an earlier life wrote of later steps, TensorBoard then leaves out.

    Args:
      step: Which was restored; None if nothing was.
      published: (step, source) that are to stay, and are not written again.
    """
    self.close()
    self._first_step = 0 if step is None else step + 1
    self._published = published

  def __call__(self, report: report_lib.Report) -> None:
    again = (report.step, report.source) in self._published
    if not report.scalars or again:
      return
    with self._best_effort():
      self._write(report)

  def _write(self, report: report_lib.Report) -> None:
    timing = {f'time/{tag}': value for tag, value in report.timing.items()}
    values = [_scalar(*item) for item in {**report.scalars, **timing}.items()]
    summary = tf.compat.v1.Summary(value=values)
    with self._writer(report.source).as_default(step=report.step):
      tf.summary.experimental.write_raw_pb(summary.SerializeToString())
      for tag, artifact in report.artifacts.items():
        artifacts_lib.write(tag, artifact)
    self._writer(report.source).flush()

  def show(
    self, step: int, shown: Mapping[str, Any], source: str = 'train'
  ) -> None:
    """Writes artifacts by tag, outside of any Report."""
    with self._best_effort():
      with self._writer(source).as_default(step=step):
        for tag, artifact in shown.items():
          artifacts_lib.write(tag, artifact)

  def show_run(self, artifact: Any) -> None:
    """Writes what stands for all of the run, in model_dir itself."""
    self.show(0, {'run': artifact}, source='')
    with self._best_effort():
      if writer := self._writers.pop('', None):  # nothing follows
        writer.close()

  def write_text(self, tag: str, text: str) -> None:
    """Shows a text, such as the configuration, in TensorBoard's Text tab."""
    indented = ''.join(f'    {line}\n' for line in text.splitlines())
    with self._best_effort(), self._writer('train').as_default(step=0):
      tf.summary.text(tag, indented)

  def in_steps(self) -> Any:
    """Makes the train writer the default, for tf.summary inside a step."""
    with self._best_effort():
      return self._writer('train').as_default()
    return contextlib.nullcontext()

  def flush(self) -> None:
    with self._best_effort():
      for writer in self._writers.values():
        writer.flush()

  def sync(self) -> None:
    """Makes what was flushed survive a power cut."""
    for source in self._writers:
      files.sync(self._model_dir / source)

  def close(self) -> None:
    while self._writers:
      with self._best_effort():
        self._writers.popitem()[1].close()

  def _writer(self, source: str) -> Any:
    directory = self._model_dir / source
    if source in self._writers and not directory.is_dir():
      raise errors.RunDirectoryError(f'{directory} was removed')
    if source not in self._writers:
      files.make_directory(directory)
      # TensorBoard makes nothing of the first start in a directory. So each
      # life writes one, the first life, too.
      with files.named_last(directory, _EVENTS):
        _write_session_start(directory, self._first_step)
      with files.named_last(directory, _EVENTS):
        self._writers[source] = tf.summary.create_file_writer(
          str(directory), max_queue=_ENDLESS, flush_millis=_HALF_AN_HOUR
        )
        self._writers[source].flush()  # makes the file
    return self._writers[source]


_EVENTS = 'events.out.tfevents.'

# A writer of which steps know writes inside the compiled loop, where a full
# disk would end the run. So it only collects, and the host flushes it.
_ENDLESS = 2**31 - 1
_HALF_AN_HOUR = 2**31 // 1000 - 1  # more overflows, and means at once


def _write_session_start(directory: pathlib.Path, step: int) -> None:
  """Tells TensorBoard that what follows replaces all from `step` on."""
  writer = event_file_writer.EventFileWriter(str(directory))
  try:
    writer.add_event(
      event_pb2.Event(
        step=step,
        wall_time=time.time(),
        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START),
      )
    )
  finally:
    writer.close()


def _scalar(tag: str, value: float) -> Any:
  """What tf.summary.scalar writes; one op for all of a Report's scalars is ten
  times faster than one call for each."""
  return tf.compat.v1.Summary.Value(
    tag=tag,
    tensor={'dtype': tf.float32.as_datatype_enum, 'float_val': [value]},
    metadata={'plugin_data': {'plugin_name': 'scalars'}},
  )

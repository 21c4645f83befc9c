"""SummaryWriter: writes Reports as TensorBoard summaries."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import math
import pathlib
import time
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer import event_file_writer
import tensorflow as tf

from tftrain import errors
from tftrain.platform import best_effort
from tftrain.platform import files
from tftrain.report import action as action_lib
from tftrain.report import report as report_lib
from tftrain.summary import artifacts as artifacts_lib


class SummaryWriter(action_lib.Action):
  """Writes scalars and artifacts to `model_dir/<source>/`, for TensorBoard.

  Training and evaluation use the same tags in separate directories, so
  `tensorboard --logdir model_dir` shows both on one chart. Timing is under
  `time/`.

  Reports are flushed at most once a second, and before each checkpoint.

  A write error does not fail the run: it is logged, at most once a minute, and
  training continues.

  Args:
    model_dir: The run's directory.
  """

  part = 'summaries'

  def __init__(self, model_dir: str | pathlib.Path):
    self._model_dir = files.run_directory(model_dir)
    self._writers: dict[str, Any] = {}
    self._first_step = 0
    self._published: Collection[tuple[int, str]] = ()
    self._flushed = -math.inf  # time of the last flush
    self._best_effort = best_effort.BestEffort(
      f'Summaries below {self._model_dir}',
      (OSError, errors.RunDirectoryError, tf.errors.OpError),
    )

  def begin(
    self, step: int | None, published: Collection[tuple[int, str]] = ()
  ) -> None:
    """Begins an attempt of the run.

    TensorBoard then hides later steps that an earlier attempt wrote.

    Args:
      step: The restored step; None if no checkpoint was restored.
      published: (step, source) of Reports that stay and are not written again.
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
    writer = self._writer(report.source)
    # tf.summary.experimental.write_raw_pb needs a default writer, whose context
    # flushes it.
    tf.raw_ops.WriteRawProtoSummary(
      writer=writer._resource,
      step=tf.constant(report.step, tf.int64),
      tensor=summary.SerializeToString(),
    )
    if report.artifacts:
      with writer.as_default(step=report.step):
        for tag, artifact in report.artifacts.items():
          artifacts_lib.write(tag, artifact)
    if time.monotonic() - self._flushed >= _FLUSH_SECONDS:
      self._flush_all()

  def show(
    self, step: int, shown: Mapping[str, Any], source: str = 'train'
  ) -> None:
    """Writes artifacts by tag, outside of any Report."""
    with self._best_effort():
      with self._writer(source).as_default(step=step):
        for tag, artifact in shown.items():
          artifacts_lib.write(tag, artifact)

  def show_run(self, artifact: Any) -> None:
    """Writes an artifact of the whole run, to model_dir itself."""
    self.show(0, {'run': artifact}, source='')
    with self._best_effort():
      if writer := self._writers.pop('', None):  # nothing follows
        writer.close()

  def write_text(self, tag: str, text: str) -> None:
    """Writes a text, such as the configuration, for TensorBoard's Text tab."""
    indented = ''.join(f'    {line}\n' for line in text.splitlines())
    with self._best_effort(), self._writer('train').as_default(step=0):
      tf.summary.text(tag, indented)

  @contextlib.contextmanager
  def in_steps(self) -> Iterator[None]:
    """Provides the train writer to tf.summary inside steps, as a context."""
    with contextlib.ExitStack() as stack:
      with self._best_effort():
        stack.enter_context(self._writer('train').as_default())
      yield
      with self._best_effort():  # at its end it flushes
        stack.close()

  def flush(self) -> None:
    with self._best_effort():
      self._flush_all()

  def _flush_all(self) -> None:
    for writer in self._writers.values():
      writer.flush()
    self._flushed = time.monotonic()

  def sync(self) -> None:
    """Syncs flushed summaries to disk, so that they survive a power cut."""
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
      # TensorBoard ignores the first session start in a directory, so every
      # attempt writes one, including the first attempt.
      with files.sort_after_existing(directory, _EVENTS):
        _write_session_start(directory, self._first_step)
      with files.sort_after_existing(directory, _EVENTS):
        self._writers[source] = tf.summary.create_file_writer(
          str(directory), max_queue=_ENDLESS, flush_millis=_HALF_AN_HOUR
        )
        self._writers[source].flush()  # makes the file
    return self._writers[source]


_FLUSH_SECONDS = 1.0
_EVENTS = 'events.out.tfevents.'

# A writer that steps use would write inside the compiled loop, where a full
# disk would end the run. So it only buffers, and the host flushes it.
_ENDLESS = 2**31 - 1
_HALF_AN_HOUR = 2**31 // 1000 - 1  # more overflows and flushes at once


def _write_session_start(directory: pathlib.Path, step: int) -> None:
  """Tells TensorBoard to discard older events from `step` on."""
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
  """Returns the value that tf.summary.scalar writes.

  One op for all scalars of a Report is ten times faster than a call for each.
  """
  return tf.compat.v1.Summary.Value(
    tag=tag,
    tensor={'dtype': tf.float32.as_datatype_enum, 'float_val': [value]},
    metadata={'plugin_data': {'plugin_name': 'scalars'}},
  )

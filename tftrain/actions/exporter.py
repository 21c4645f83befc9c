"""Exporter: an Action that exports the model during and after training."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import math
import pathlib
from typing import Any, Protocol

from absl import logging

from tftrain import errors
from tftrain.checkpoint import retention
from tftrain.data import pipeline as pipeline_lib
from tftrain.data import serving_decoder
from tftrain.export import converters
from tftrain.export import isolated_process
from tftrain.export import saved_model
from tftrain.platform import files
from tftrain.platform import signals as signals_lib
from tftrain.report import action as action_lib
from tftrain.report import interval
from tftrain.report import report as report_lib
from tftrain.task import task as task_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
  """Schedule and contents of a run's exports; the last is at its end.

  >>> Experiment(..., export=Export(every=1000, formats=['tflite']))

  Attributes:
    every: Interval of further exports: steps, or a time such as '1h'; None
      exports only at the end.
    on_best: Whether to export after each evaluation with a new best value of
      `Experiment.best`, too.
    keep: Number of newest exports to keep.
    formats: Formats beside the SavedModel: `tflite`, `tflite_float16`,
      `tflite_int8`, `keras`, `onnx`.
    part: Attribute of the Task that names a model to export alone, such as
      `backbone`; None exports the whole Task.
    records: Whether to offer a signature on serialized tf.train.Examples, if
      the data consists of these.
    fresh: Whether a fresh process without tftrain verifies the export; this
      takes some seconds.

  Raises:
    ConfigError: If `keep` is not a whole number of at least 1, or `formats` is
      a string.
  """

  every: interval.Interval | None = None
  on_best: bool = False
  keep: int = 3
  formats: Sequence[str] = ()
  part: str | None = None
  records: bool = True
  fresh: bool = True

  def __post_init__(self) -> None:
    errors.check_count('Export.keep', self.keep)
    if isinstance(self.formats, str):
      raise errors.ConfigError(
        f'Export.formats = {self.formats!r}; give a list of names'
      )


# Seconds before the end of a run at which the process that verifies its export
# is started: importing TensorFlow takes about as long.
_START_UP = 10.0


class InputSource(Protocol):
  """Source of real inputs: a Trainer or an Evaluator."""

  @property
  def pipeline(self) -> pipeline_lib.Pipeline: ...

  def example_features(self) -> Any: ...


class Exporter(action_lib.Action):
  """Writes `export/<step>/`, the layout that TensorFlow Serving watches.

  Args:
    model_dir: Directory of the run.
    task: A built Task.
    samples: Returns the source of inputs that verify an export.
    options: Schedule and contents.
    best: Metric for `options.on_best`.
    about: Returns facts about the run, for model.md.

  Raises:
    ConfigError: If `options.on_best` is set without `best`, or `options.part`
      names no model of the Task.
  """

  part = 'export'

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    task: task_lib.Task,
    samples: Callable[[], InputSource],
    options: Export,
    *,
    best: retention.KeepBest | None = None,
    about: Callable[[], Mapping[str, Any]] = dict,
  ):
    self.directory = files.run_directory(model_dir) / 'export'
    self._task = task
    self._samples = samples
    self.options = options
    self._monitor = best if options.on_best else None
    self._about = about
    self._best = -math.inf
    self.interrupting: Callable[[], contextlib.AbstractContextManager[None]]
    self.interrupting = contextlib.nullcontext
    """Context of an export; it may raise Interrupted inside."""
    if options.on_best and best is None:
      raise errors.ConfigError('Export.on_best needs Experiment.best')
    self._part = self._find_part()
    self._process: isolated_process.IsolatedProcess | None = None

  def check(self) -> None:
    """Checks early for errors that an export at the end would raise.

    Raises:
      ConfigError: If a format is unknown, or its package is not installed.
      ExportError: If a signature cannot be exported.
    """
    if self._part is None:
      samples = self._samples()
      saved_model.check_serve(
        self._task, samples.example_features(), self._decoder(samples)
      )
    for name in self.options.formats:
      converters.of_name(name)

  def path(self, step: int) -> pathlib.Path:
    return self.directory / str(step)

  def export(self, step: int) -> pathlib.Path:
    """Exports the current Task, unless the export of `step` exists.

    An existing export is complete, because a rename creates its directory.
    """
    path = self.path(step)
    if path.exists():
      return path
    samples = self._samples()
    saved_model.export_model(
      self._task,
      samples.example_features(),
      path,
      part=self._part,
      formats=self.options.formats,
      decoder=self._decoder(samples),
      fresh=self._running_process() or self.options.fresh,
      about={'Run': {'step': step}, **self._about()},
    )
    self._remove_old(step)
    return path

  # The fresh process.

  def start_process(self, report: report_lib.Report) -> None:
    """Starts the fresh process before the end of the run, if that is near."""
    rate = report.timing.get('steps_per_second')
    if not (self.options.fresh and rate and self._process is None):
      return
    if (report.last_step - report.step) / rate < _START_UP:
      try:
        self._process = isolated_process.IsolatedProcess()
      except OSError as error:  # the export tries again
        logging.warning('The process that verifies the export: %s', error)

  def _running_process(self) -> isolated_process.IsolatedProcess | None:
    running = self._process is not None and self._process.is_running
    return self._process if running else None

  def close(self) -> None:
    """Ends the fresh process, if it was started and not used."""
    if self._process is not None:
      self._process.close()

  # Actions.

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    if report.is_last:  # exported after the last checkpoint
      return None
    return self._interruptible(report.step)

  def if_best(self, report: report_lib.Report) -> report_lib.Signal | None:
    """Exports if a Report of an evaluation brings a new best value."""
    assert self._monitor is not None
    source, _, tag = self._monitor.metric.rpartition('/')
    if report.source != source or tag not in report.scalars:
      return None
    rank = self._monitor.rank(report.scalars[tag])
    if rank <= self._best:
      return None
    signal = self._interruptible(report.step)
    if signal is None:
      self._best = rank
    return signal

  def read_state(self) -> dict[str, Any]:
    return {'best': str(self._best)}  # JSON has no infinity

  def write_state(self, state: Mapping[str, Any]) -> None:
    self._best = float(state['best'])

  def _decoder(self, samples: InputSource) -> serving_decoder.Decoder | None:
    return samples.pipeline.decoder() if self.options.records else None

  def _interruptible(self, step: int) -> report_lib.Signal | None:
    try:
      with self.interrupting():
        self.export(step)
    except signals_lib.Interrupted:
      return report_lib.Signal.INTERRUPTED
    return None

  def discard_after(self, step: int) -> None:
    """Sets aside exports after `step`, which a rewind to `step` obsoletes."""
    for later in self._steps():
      if later > step:
        files.set_aside(self.path(later), 'abandoned')

  def _steps(self) -> list[int]:
    """Returns the steps of existing exports by tftrain."""
    return sorted(
      int(path.parent.name)
      for path in self.directory.glob(f'*/{saved_model.COMPARISON}')
      if path.parent.name.isdecimal()
    )

  def _remove_old(self, newest: int) -> None:
    older = [step for step in self._steps() if step < newest]
    for step in older[: max(len(older) - self.options.keep + 1, 0)]:
      files.remove_directory(self.path(step))

  def _find_part(self) -> Any:
    name = self.options.part
    if name is None:
      return None
    found = getattr(self._task, name, None)
    if not callable(found) or not hasattr(found, 'variables'):
      known = [
        key for key, value in vars(self._task).items()
        if callable(value) and hasattr(value, 'variables')
      ]  # fmt: skip
      raise errors.ConfigError(
        f'Export.part = {name!r} is no model of {type(self._task).__name__}; '
        f'it has {", ".join(known)}'
      )
    return found

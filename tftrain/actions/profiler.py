"""Profiler: an Action that traces a few steps and ranks their operations."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import pathlib
import re
from typing import Any, NamedTuple

from absl import logging
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tftrain import errors
from tftrain.platform import files
from tftrain.report import action as action_lib
from tftrain.report import report as report_lib

_ROWS = 10

# Places among the Actions: last to begin and first to end a trace, so that it
# excludes the other Actions at its two ends.
_BEGINS, _ENDS = 2, -1

# Name and type of an operation in a trace: `model/dense/MatMul:MatMul`.
_OPERATION = re.compile(r'([A-Za-z0-9_.][\w./>\\-]*):(\w+)')

# Lines of a device that sum up other lines.
_SUMS = ('Steps', 'XLA Modules', 'Framework Name Scope', 'Source code')


class Profiler(action_lib.Action):
  """Traces the steps `first` to `last` with TensorFlow's profiler.

  The trace goes to `model_dir/train/plugins/profile/`, for TensorBoard's
  profile plugin. A table of the most expensive operations is printed and
  written to `profile-<first>-<last>.txt`; it needs no plugin.

  >>> Experiment(make_task, train_data, steps=100, actions=[Profiler(10, 19)])

  Args:
    first: First step to trace, at least 2, because tracing begins at the end of
      the previous step.
    last: Last step to trace.

  Raises:
    ConfigError: If `first` and `last` are not integers with
      2 <= first <= last.
  """

  part = 'summaries'
  needs_scalars = False
  acts_on_stop = True  # a running trace must be stopped
  place = _BEGINS

  def __init__(self, first: int, last: int):
    whole = all(type(step) is int for step in (first, last))
    if not whole or not 2 <= first <= last:
      raise errors.ConfigError(
        f'profile steps {first}:{last}: give two numbers of steps a:b, 2 <= a '
        '<= b (step 1 compiles, so it says nothing of the others)'
      )
    self.first, self.last = first, last
    self._run: report_lib.BoundRun | None = None
    self._known: set[pathlib.Path] = set()
    self._is_tracing = False
    self._is_through = False

  def bind(self, run: report_lib.BoundRun) -> None:
    """Sets the run whose steps are traced.

    Raises:
      ConfigError: If the run ends before `last`.
    """
    if self.last > run.last_step:
      raise errors.ConfigError(
        f'profile steps {self.first}:{self.last}: the run ends at step '
        f'{run.last_step}; give steps before that'
      )
    self._run = run

  def next_due(self, step: int) -> int | None:
    if self._is_through:
      return None
    return next((at for at in (self.first - 1, self.last) if at > step), None)

  def __call__(self, report: report_lib.Report) -> None:
    if self._run is None:
      raise errors.ConfigError(
        'Profiler does not know its run; give it to Experiment.actions'
      )
    if self._is_tracing:
      went_back = report.step < self.first - 1
      if (
        report.step >= self.last
        or report.stopping
        or report.is_last
        or went_back
      ):
        self._end(self._run, report.step)
    elif not self._is_through and report.step >= self.first - 1:
      self._is_through = report.step >= self.first or report.stopping
      if report.step >= self.first:
        self._say(f'the run is at step {report.step} already')
      elif not self._is_through and not report.is_last:
        self._begin(self._run)

  def _begin(self, run: report_lib.BoundRun) -> None:
    run.checkpointer.wait()  # keeps the writer thread out of the trace
    directory = run.model_dir / 'train'
    files.make_directory(directory)
    self._known = set(_traces(directory))
    try:
      tf.profiler.experimental.start(str(directory))
      self._is_tracing, self.place = True, _ENDS
    except tf.errors.OpError as error:
      self._is_through = True
      self._say(errors.one_line(error))

  def _end(self, run: report_lib.BoundRun, step: int) -> None:
    self._is_tracing, self._is_through = False, True
    self.place = _BEGINS
    try:
      tf.profiler.experimental.stop()
      new = set(_traces(run.model_dir / 'train')) - self._known
      planes = [plane for path in sorted(new) for plane in _planes(path)]
    except (tf.errors.OpError, OSError, ValueError) as error:
      self._say(errors.one_line(error))
      return
    if step < self.last:
      self._say(f'the run was stopped, or went back, at step {step}')
      return
    text = table(operations(planes), self.last - self.first + 1)
    title = f'Steps {self.first} to {self.last}, the costliest operations:'
    print(f'{title}\n{text}', flush=True)
    run.show(f'profile-{self.first}-{self.last}.txt', f'{title}\n{text}\n')

  def _say(self, why: str) -> None:
    logging.warning(
      'Steps %d to %d have no profile: %s.', self.first, self.last, why
    )


class Operation(NamedTuple):
  """Cost of an operation in a trace.

  Attributes:
    name: Name in the graph.
    kind: Type, such as `MatMul`; for a kernel without a type, its device.
    runs: Number of executions.
    seconds: Total time, excluding nested operations.
  """

  name: str
  kind: str
  runs: int
  seconds: float


def operations(planes: Iterable[Any]) -> list[Operation]:
  """Returns the operations in a trace, the most expensive first.

  Args:
    planes: Planes of an XSpace.
  """
  seconds: Counter[tuple[str, str]] = Counter()
  counts: Counter[tuple[str, str]] = Counter()
  for plane in planes:
    for line in plane.lines:
      for key, picoseconds in _own_times(_events(plane, line)):
        seconds[key] += picoseconds
        counts[key] += 1
  ranked = sorted(seconds, key=lambda key: (-seconds[key], key))
  return [Operation(*key, counts[key], seconds[key] / 1e12) for key in ranked]


def table(found: Sequence[Operation], steps: int) -> str:
  """Returns the first rows of `found` as text, with times per step."""
  total = sum(operation.seconds for operation in found)
  lines = [f'{"ms/step":>10} {"share":>6} {"runs":>7}  operation']
  for name, kind, times, seconds in found[:_ROWS]:
    share = seconds / total if total else 0.0
    milliseconds = 1e3 * seconds / steps
    lines.append(f'{milliseconds:10.3f} {share:6.1%} {times:7}  {kind}  {name}')
  if not found:
    lines.append('no operation is in the trace')
  return '\n'.join(lines)


_Event = tuple[int, int, tuple[str, str]]


def _events(plane: Any, line: Any) -> Iterator[_Event]:
  """Yields (begin, end, (name, kind)) of each operation, in picoseconds."""
  on_device = plane.name.startswith('/device:')
  if on_device and line.name in _SUMS:
    return
  for event in line.events:
    name = plane.event_metadata[event.metadata_id].name
    match = _OPERATION.fullmatch(name)
    if match:
      key = match[1], match[2]
    elif on_device:
      key = name, plane.name.removeprefix('/device:')
    else:
      continue
    yield event.offset_ps, event.offset_ps + event.duration_ps, key


def _own_times(
  events: Iterable[_Event],
) -> Iterator[tuple[tuple[str, str], int]]:
  """Yields ((name, kind), time excluding nested events) of each event."""
  stack: list[list[Any]] = []
  for begin, end, key in sorted(events, key=lambda e: (e[0], -e[1])):
    while stack and stack[-1][0] <= begin:
      yield _closed(stack)
    if stack:
      stack[-1][2] -= min(end, stack[-1][0]) - begin
    stack.append([end, key, end - begin])
  while stack:
    yield _closed(stack)


def _closed(stack: list[list[Any]]) -> tuple[tuple[str, str], int]:
  _, key, own = stack.pop()
  return key, max(own, 0)


def _traces(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  return directory.glob('plugins/profile/*/*.xplane.pb')


def _planes(path: pathlib.Path) -> Sequence[Any]:
  space = xplane_pb2.XSpace()
  space.ParseFromString(path.read_bytes())
  return list(space.planes)


def parse(text: str) -> Profiler:
  """Parses `a:b` into a Profiler of steps a to b.

  Raises:
    ConfigError: If `text` does not have this form.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text.strip())
  if not match:
    raise errors.ConfigError(
      f'--profile_steps={text} is no range of steps; give a:b, such as 10:19'
    )
  return Profiler(int(match[1]), int(match[2]))

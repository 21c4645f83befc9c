"""What flows: a Trainer or Evaluator reports, an Action receives the Report."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import enum
import pathlib
from typing import Any, Protocol


class Signal(enum.Enum):
  """What an Action may return to the loop that called it."""

  STOP = 'stop'
  """The run is done: what has an interval fires once more, then it ends."""

  INTERRUPTED = 'interrupted'
  """A stop came before the Action was through; resuming asks it again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What happened since the Report before it.

  Attributes:
    source: Who reports: `train` or `eval/<name>`.
    step: Batches consumed so far, over the run's whole life.
    previous_step: `step` of the Report before this one.
    start_step: The step at which this process started or resumed.
    last_step: The step at which the run ends, as far as is known.
    scalars: Means over the steps since scalars were last reported. Empty in a
      train Report that falls between two `log_every` steps.
    seconds: Time those steps took; evaluation and saving are not in it.
    timing: What a clock says of the same steps (`steps_per_second`, ...).
    artifacts: What to look at: images, texts and more, by tag.
    stopping: A stop was requested from outside (SIGTERM, say): the run is not
      done and will be resumed. Only what must survive should act on it.
    saving: A save was requested from outside (SIGUSR1); the run goes on.
  """

  source: str
  step: int
  previous_step: int
  start_step: int
  last_step: int
  scalars: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seconds: float = 0.0
  timing: Mapping[str, float] = dataclasses.field(default_factory=dict)
  artifacts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  stopping: bool = False
  saving: bool = False

  @property
  def is_last(self) -> bool:
    return self.step >= self.last_step and not self.stopping


Action = Callable[[Report], Signal | None]


class BoundRun(Protocol):
  """The run that an Action belongs to, as its `bind(run)` gets it.

  An `experiment.run.Run` is one; Actions need not import it.
  """

  @property
  def model_dir(self) -> pathlib.Path: ...

  @property
  def last_step(self) -> int: ...

  @property
  def trainer(self) -> Any: ...

  @property
  def checkpointer(self) -> Any: ...

  @property
  def summary_writer(self) -> Any: ...

  def show(
    self, name: str, text: str, *, in_tensorboard: bool = True
  ) -> None: ...

"""Reports: the data that a Trainer or Evaluator passes to its Actions."""

from collections.abc import Mapping
import dataclasses
import enum
import pathlib
from typing import Any, Protocol


class Signal(enum.Enum):
  """The value that an Action may return to the loop that called it."""

  STOP = 'stop'
  """The run is done: Actions with an interval run once more, then it ends."""

  INTERRUPTED = 'interrupted'
  """A stop interrupted the Action; the resumed run calls the Action again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """The progress of a run since its previous Report.

  Attributes:
    source: Origin of the Report: `train` or `eval/<name>`.
    step: Batches consumed so far, over all attempts of the run.
    previous_step: `step` of the previous Report.
    start_step: The step at which this process started or resumed.
    last_step: The step at which the run ends, as far as is known.
    scalars: Means over the steps since scalars were last reported. Empty in a
      train Report between two `log_every` steps.
    seconds: Duration of these steps, without evaluation and saving.
    timing: Clock measurements of these steps (`steps_per_second`, ...).
    artifacts: Images, texts and other artifacts, by tag.
    stopping: True if a stop was requested from outside (SIGTERM, say): the run
      is not done and will be resumed. Only Actions that must save should act.
    saving: True if a save was requested from outside (SIGUSR1); the run
      continues.
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


class BoundRun(Protocol):
  """The run to which an Action belongs: the argument of its `bind(run)`.

  `experiment.run.Run` implements this protocol, so Actions need not import it.
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

"""Action: the base class of what a Trainer calls with its Reports."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from tftrain import errors
from tftrain.report import report as report_lib


class Action:
  """Base class of Actions (callbacks); subclasses implement `__call__`.

  A plain function of a Report will do for most purposes: it is wrapped in an
  Action with these defaults.

  >>> class At(Action):
  ...   needs_scalars = False
  ...
  ...   def next_due(self, step):
  ...     return 500 if step < 500 else None
  ...
  ...   def __call__(self, report):
  ...     if report.previous_step < 500 <= report.step:
  ...       print(report.step)

  Attributes:
    needs_scalars: True to get only Reports with scalars; False to get the
      Report of each block of steps.
    hears_all: Whether an Experiment also passes the Reports of evaluations.
    acts_on_stop: Whether to get the Report of a stop or save that is requested
      from outside.
    place: Order of the calls at one Report. Those that take long and may be
      interrupted come last.
    part: The part of the goodput ledger that the time is attributed to.
  """

  needs_scalars: bool = True
  hears_all: bool = False
  acts_on_stop: bool = False
  place: int = 0
  part: str = 'actions'

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    raise NotImplementedError

  def next_due(self, step: int) -> int | None:
    """Returns the next step at which a Report is due; None for no such step."""
    del step
    return None

  def bind(self, run: report_lib.BoundRun) -> None:
    """Sets the run; called once, before the first step. It must not write."""

  def read_state(self) -> Mapping[str, Any]:
    """Returns the state that checkpoints save, as JSON; {} if there is none."""
    return {}

  def write_state(self, state: Mapping[str, Any]) -> None:
    """Restores what `read_state` returned."""


ActionLike = Action | Callable[[report_lib.Report], report_lib.Signal | None]
"""An Action, or a function of a Report."""

_METHODS = ('next_due', 'bind', 'read_state', 'write_state')


class FunctionAction(Action):
  """Wraps a function of a Report.

  The runs of an Experiment share the function, and have Actions of their own.

  Args:
    function: The function. The method of an Action takes its `part`.
  """

  def __init__(
    self, function: Callable[[report_lib.Report], report_lib.Signal | None]
  ):
    self.function = function
    owner = getattr(function, '__self__', None)
    if isinstance(owner, Action):
      self.part = owner.part

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    return self.function(report)


def as_action(given: ActionLike) -> Action:
  """Returns an Action; wraps a function.

  Raises:
    ConfigError: If `given` cannot be called, or has a method of an Action
      without being one.
  """
  if isinstance(given, Action):
    return given
  name = type(given).__name__
  if isinstance(given, type) or not callable(given):
    what = given.__name__ if isinstance(given, type) else repr(given)
    raise errors.ConfigError(
      f'actions: {what} is no Action; give an instance of tftrain.Action, or a '
      'function of a Report'
    )
  found = [method for method in _METHODS if hasattr(given, method)]
  if found:
    raise errors.ConfigError(
      f'actions: {name} has {found[0]}() but is no Action, so it would not be '
      f'called; write class {name}(tftrain.Action)'
    )
  return FunctionAction(given)


def as_actions(given: Sequence[ActionLike]) -> list[Action]:
  """Returns Actions; wraps functions.

  Raises:
    ConfigError: If `given` is not a list, or holds what is no Action.
  """
  if callable(given) or isinstance(given, str):
    raise errors.ConfigError(
      f'actions is {type(given).__name__}, not a list; write [action]'
    )
  return [as_action(one) for one in given]

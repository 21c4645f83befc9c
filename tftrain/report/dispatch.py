"""Dispatch: passes each Report to the Actions that it concerns."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import copy
from typing import Any, Protocol

from tftrain.platform import goodput
from tftrain.report import every as every_lib
from tftrain.report import report as report_lib


class Stateful(Protocol):
  """An Action with a JSON state, which checkpoints save."""

  def read_state(self) -> dict[str, Any]: ...

  def write_state(self, state: Mapping[str, Any]) -> None: ...


def stateful(actions: Sequence[Any]) -> dict[str, Stateful]:
  """Returns the Actions that have a state, by the names of their classes.

  A further Action of the same class gets the suffix `_2`, `_3` and so on.
  """
  found: dict[str, Stateful] = {}
  for action in actions:
    action = action.action if isinstance(action, every_lib.Every) else action
    if hasattr(action, 'read_state') and hasattr(action, 'write_state'):
      name, count = type(action).__name__, 1
      while name in found:
        count += 1
        name = f'{type(action).__name__}_{count}'
      found[name] = action
  return found


def due_steps(action: Any, step: int) -> int | None:
  """Returns the next step at which an Action is due, or None."""
  next_due: Callable[[int], int | None] | None = getattr(
    action, 'next_due', None
  )
  return next_due(step) if next_due else None


def dispatch(
  actions: Sequence[report_lib.Action],
  report: report_lib.Report,
  ledger: goodput.Ledger | None = None,
) -> set[report_lib.Signal | None]:
  """Calls the Actions that a Report concerns, in the order of their `place`.

  A plain Action gets the Reports that have scalars. An Action with an interval
  (`next_due`) gets all Reports, after the plain Actions. If a stop is requested
  from outside, only the Actions that must save (`acts_on_stop`) get the Report.
  These Actions also get the Report of a save that is requested from outside.

  Args:
    actions: Candidates for the Report.
    report: The Report.
    ledger: Ledger to which the time of the Actions is attributed, if any.

  Returns:
    The signals of the Actions. INTERRUPTED ends the dispatch: later Actions
    are not called.
  """
  signals = set()
  # Actions that report run before long ones, which may be interrupted.
  for action in sorted(actions, key=_place):
    if report.stopping:
      concerned = getattr(action, 'acts_on_stop', False)
    else:
      asked = report.saving and getattr(action, 'acts_on_stop', False)
      timed = hasattr(action, 'next_due')
      concerned = bool(report.scalars) or timed or asked
    if concerned:
      with (
        ledger.part(every_lib.part_of(action))
        if ledger
        else contextlib.nullcontext()
      ):
        signals.add(action(report))
    if report_lib.Signal.INTERRUPTED in signals:
      break
  return signals


def copy_for_run(
  actions: Sequence[report_lib.Action],
) -> tuple[list[report_lib.Action], list[report_lib.Action]]:
  """Copies the Actions of an Experiment for one run, as they may have a state.

  Returns:
    (Actions that get the Reports of training, Actions that also get the
    Reports of evaluations (`hears_all`)).
  """
  copies = [copy.copy(action) for action in actions]
  for action in copies:
    if isinstance(action, every_lib.Every) and hasattr(action.action, 'bind'):
      action.action = copy.copy(action.action)
  hear_all = [a for a in copies if getattr(a, 'hears_all', False)]
  return [a for a in copies if a not in hear_all], hear_all


def bind(actions: Sequence[Any], run: Any) -> None:
  """Calls `bind(run)` of the Actions that have this method."""
  for action in actions:
    action = action.action if isinstance(action, every_lib.Every) else action
    if hasattr(action, 'bind'):
      action.bind(run)


def _place(action: Any) -> int:
  """Returns an Action's `place`, by default 0 if plain and 1 if timed."""
  place: int = getattr(action, 'place', int(hasattr(action, 'next_due')))
  return place

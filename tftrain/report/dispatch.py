"""Dispatch: gives each Report to the Actions that it concerns."""

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
  """An Action whose state goes into checkpoints, as JSON."""

  def read_state(self) -> dict[str, Any]: ...

  def write_state(self, state: Mapping[str, Any]) -> None: ...


def stateful(actions: Sequence[Any]) -> dict[str, Stateful]:
  """Those of `actions` that have a state, by the names of their classes."""
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
  """The step at which an Action next wants a Report of its own, if any."""
  next_due: Callable[[int], int | None] | None = getattr(
    action, 'next_due', None
  )
  return next_due(step) if next_due else None


def dispatch(
  actions: Sequence[report_lib.Action],
  report: report_lib.Report,
  ledger: goodput.Ledger | None = None,
) -> set[report_lib.Signal | None]:
  """Gives a Report to those Actions that it concerns.

  A plain Action gets the Reports with scalars, first; one that has an interval
  of its own gets all. When the run is being stopped from outside, only those
  hear of it that must save (`acts_on_stop`); they also hear of a save that
  somebody asked for.

  Args:
    actions: Who may hear of it.
    report: What happened.
    ledger: Where their time is booked.

  Returns:
    The signals that they gave; the first INTERRUPTED is the last of them.
  """
  signals = set()
  # Those that report come before those that may take long and be cut short.
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


def own(
  actions: Sequence[report_lib.Action],
) -> tuple[list[report_lib.Action], list[report_lib.Action]]:
  """Copies of a recipe's Actions for one run, as they may have a state.

  Returns:
    Those that hear of training, and those that hear of evaluations, too
    (`hears_all`).
  """
  copies = [copy.copy(action) for action in actions]
  for action in copies:
    if isinstance(action, every_lib.Every) and hasattr(action.action, 'bind'):
      action.action = copy.copy(action.action)
  hear_all = [a for a in copies if getattr(a, 'hears_all', False)]
  return [a for a in copies if a not in hear_all], hear_all


def bind(actions: Sequence[Any], run: Any) -> None:
  """Tells those Actions that have a `bind` which run they belong to."""
  for action in actions:
    action = action.action if isinstance(action, every_lib.Every) else action
    if hasattr(action, 'bind'):
      action.bind(run)


def _place(action: Any) -> int:
  """Of 0 for plain Actions and 1 for timed ones, or what an Action asks for."""
  place: int = getattr(action, 'place', int(hasattr(action, 'next_due')))
  return place

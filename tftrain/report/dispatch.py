"""Dispatch: passes each Report to the Actions that it concerns."""

from collections.abc import Sequence
import contextlib
import copy

from tftrain.platform import goodput
from tftrain.report import action as action_lib
from tftrain.report import every as every_lib
from tftrain.report import report as report_lib


def stateful(
  actions: Sequence[action_lib.ActionLike],
) -> dict[str, action_lib.Action]:
  """Returns the Actions that have a state, by the names of their classes.

  A further Action of the same class gets the suffix `_2`, `_3` and so on.
  """
  found: dict[str, action_lib.Action] = {}
  for action in action_lib.as_actions(actions):
    action = action.action if isinstance(action, every_lib.Every) else action
    if type(action).read_state is action_lib.Action.read_state:
      continue
    name, count = type(action).__name__, 1
    while name in found:
      count += 1
      name = f'{type(action).__name__}_{count}'
    found[name] = action
  return found


def dispatch(
  actions: Sequence[action_lib.Action],
  report: report_lib.Report,
  ledger: goodput.Ledger | None = None,
) -> set[report_lib.Signal | None]:
  """Calls the Actions that a Report concerns, in the order of their `place`.

  If a stop is requested from outside, only the Actions that must save
  (`acts_on_stop`) get the Report. They also get the Report of a save that is
  requested from outside.

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
  for action in sorted(actions, key=lambda action: action.place):
    if _concerns(report, action):
      timed = ledger.part(action.part) if ledger else contextlib.nullcontext()
      with timed:
        signals.add(action(report))
    if report_lib.Signal.INTERRUPTED in signals:
      break
  return signals


def _concerns(report: report_lib.Report, action: action_lib.Action) -> bool:
  if report.stopping:
    return action.acts_on_stop
  asked = report.saving and action.acts_on_stop
  return asked or bool(report.scalars) or not action.needs_scalars


def copy_for_run(
  actions: Sequence[action_lib.ActionLike],
) -> tuple[list[action_lib.Action], list[action_lib.Action]]:
  """Copies the Actions of an Experiment for one run, as they may have a state.

  Returns:
    (Actions that get the Reports of training, Actions that also get the
    Reports of evaluations (`hears_all`)).
  """
  copies = [copy.copy(action) for action in action_lib.as_actions(actions)]
  hear_all = [action for action in copies if action.hears_all]
  return [a for a in copies if a not in hear_all], hear_all

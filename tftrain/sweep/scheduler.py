"""The scheduler of a sweep on one machine: runs trials in slots to the end.

All of its state is in the sweep's directory, so nothing is lost if the
scheduler is killed. The commands `run` and `worker` use the same scheduler.
"""

from collections.abc import Callable
from collections.abc import Sequence
import signal
import time
from typing import Any

from tftrain import errors
from tftrain.platform import resource_slots
from tftrain.platform import signals as signals_lib
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import _trial_process
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib

_TICK = 0.05  # seconds between two polls of the child processes
_LOOK = 0.5  # seconds between two reads of leases and results

Show = Callable[[Sequence[results_lib.Result]], None]


class Scheduler:
  """The scheduler of those trials of a plan that no other process runs.

  Args:
    plan: The plan of the sweep.
    places: Slots, one for each concurrent trial.
    show: Callback that is given all results repeatedly.
    keep_going: Whether to go on after three equal failures; by default not.
  """

  def __init__(
    self,
    plan: plan_lib.Plan,
    places: Sequence[resource_slots.Slot],
    *,
    show: Show,
    keep_going: bool = False,
  ):
    self._plan = plan
    self._free = list(places)
    self._show = show
    self._keep_going = keep_going
    self._limit = float(plan.settings['lease_seconds'])
    self._grace = float(plan.settings['grace_seconds'])
    self._children: list[_trial_process.Child] = []
    self._board = _Board(plan)
    self._began = time.time()
    self._signal = 0
    self._failure = ''

  def run(self) -> int:
    """Runs trials until all are over, or until a signal or repeated failure.

    Returns:
      0; 1 if a trial failed; 128 + the number of the signal that stopped it.

    Raises:
      Error: If the command cannot be started, or three trials in a row failed
        alike.
    """
    with signals_lib.handled((signal.SIGINT, signal.SIGTERM), self._receive):
      try:
        self._work()
      except BaseException:
        self._abandon()
        raise
    found = self._board.read()
    self._show(found)
    if self._signal:
      return 128 + self._signal
    if self._failure:
      raise errors.ConfigError(self._failure)
    return int(any(result.status == 'failed' for result in found))

  @property
  def _stopping(self) -> bool:
    return bool(self._signal or self._failure)

  def _work(self) -> None:
    looked = -_LOOK
    while True:
      ended = self._reap()
      if ended or time.monotonic() - looked > _LOOK:
        looked = time.monotonic()
        found = self._board.read()
        self._show(found)
        if not self._keep_going and not self._failure:
          self._failure = _trial_process.repeated_failure(found, self._began)
        if self._fill() and not self._children:
          return
      if self._stopping:
        for child in self._children:
          child.stop(self._grace)
        if not self._children:
          return
      time.sleep(_TICK)

  def _reap(self) -> bool:
    """Frees the slots of ended processes; returns whether there were any."""
    ended = [child for child in self._children if child.has_ended()]
    for child in ended:
      self._children.remove(child)
      self._free.append(child.slot)
      child.close(stopping=self._stopping)
    return bool(ended)

  def _fill(self) -> bool:
    """Starts trials in free slots; returns whether all trials are over.

    Trials of other processes may still have to be taken over.
    """
    seen = _lease_lib.read(self._plan.sweep_dir)
    ages = _lease_lib.ages(self._plan.sweep_dir, seen)
    own = {child.trial.index for child in self._children}
    for child in self._children:
      if ages.get(child.trial.index, 0.0) > self._limit:
        child.kill()  # it hangs: even its heartbeat has stopped
    for index, one in seen.items():
      if not self._free or self._stopping:
        break
      free = _lease_lib.is_free(one, ages.get(index, 0.0), self._limit)
      if index in own or not free:
        continue
      _lease_lib.evict(one)
      lease = _lease_lib.take(one)
      if lease:
        slot = self._free.pop(0)
        trial = self._plan.trial(index)
        self._children.append(
          _trial_process.Child(self._plan, trial, slot, lease)
        )
    return len(seen) == len(self._plan.trials) and all(
      one.state in _lease_lib.ENDED for one in seen.values()
    )

  def _receive(self, number: int, frame: Any) -> None:
    del frame
    if self._signal and number == signal.SIGINT:
      self._abandon()  # a second request kills at once
    self._signal = self._signal or number

  def _abandon(self) -> None:
    for child in self._children:
      child.kill()


class _Board:
  """A cache of results: those of ended trials are read once."""

  def __init__(self, plan: plan_lib.Plan):
    self._plan = plan
    self._over: dict[int, results_lib.Result] = {}

  def read(self) -> list[results_lib.Result]:
    seen = _lease_lib.read(self._plan.sweep_dir)
    found = []
    for trial in self._plan.trials:
      one = seen.get(trial.index)
      known = self._over.get(trial.index)
      if known is None or one is None or one.state != known.status:
        known = results_lib.read_one(self._plan, trial, one)
        if known.status in _lease_lib.ENDED:
          self._over[trial.index] = known
      found.append(known)
    return found


def retry(plan: plan_lib.Plan, states: Sequence[str]) -> int:
  """Makes trials that ended in `states` pending; returns how many."""
  count = 0
  for one in _lease_lib.read(plan.sweep_dir).values():
    if one.state in states:
      lease = _lease_lib.take(one)
      if lease:
        lease.end('pending')
        count += 1
  return count

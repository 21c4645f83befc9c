"""One trial of a sweep, run in this process, under any scheduler.

`--sweep_dir=D --trial_index=N` takes trial N, runs it in its directory, and
records its outcome. Programs other than `tftrain` do the same with `run`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from typing import Any

from tftrain import errors
from tftrain.distribute import cluster_resolver
from tftrain.platform import files
from tftrain.platform import goodput
from tftrain.platform import signals as signals_lib
from tftrain.report import action as action_lib
from tftrain.report import interval
from tftrain.report import report as report_lib
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import _optuna_sampler
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import pruner as pruner_lib
from tftrain.sweep import results as results_lib

_LOST = 3
_BEATS = 6  # heartbeats per lease_seconds


class Trial:
  """A trial that this process runs; made by `run`.

  Attributes:
    plan: The plan of the sweep.
    directory: Directory of the trial, which is its model_dir.
    bindings: Lines of gin, including the seed.
  """

  def __init__(
    self, plan: plan_lib.Plan, trial: plan_lib.Trial, lease: _lease_lib.Lease
  ):
    self.plan = plan
    self.directory = plan.directory(trial)
    self.bindings: list[str] = []
    self._trial = trial
    self._lease = lease
    self._ended = threading.Event()
    self._started = goodput.process_start()
    self._overdue = False
    limit = plan.settings['time_limit']
    self._limit = interval.seconds(limit) if limit else None
    self._watch = threading.Thread(
      target=self._beat, name='tftrain-heartbeat', daemon=True
    )

  def begin(self) -> None:
    """Records the start, starts the heartbeat and draws missing bindings."""
    files.make_directory(self.directory, 'sweep_dir')
    known = results_lib.facts(self.directory)
    with files.convert_os_errors(self.directory):
      results_lib.write_facts(
        self.directory,
        status='running',
        index=self._trial.index,
        attempts=known.get('attempts', 0) + 1,
        started=self._started,
        heartbeat=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        error=None,
        overdue=None,
      )
    self._watch.start()
    trial = self._trial
    drawn = trial.bindings or _optuna_sampler.draw(self.plan, trial)
    self.bindings = list(drawn)
    if trial.seed is not None:
      self.bindings.append(f'Experiment.seed = {trial.seed}')

  def flags(self) -> dict[str, Any]:
    """Returns flag -> value with which `tftrain` runs this trial."""
    return {
      'gin_file': [str(self.plan.base)],
      'gin_bindings': self.bindings,
      'gin_search_paths': list(self.plan.command['search_paths']),
      'model_dir': str(self.directory),
    }

  def actions(self) -> list[action_lib.Action]:
    """Returns the Actions that prune the run and stop it without a lease."""
    return [Watch(self.plan, self._trial, self.check)]

  def check(self) -> None:
    """Exits this process at once if another one has taken the trial over."""
    try:
      self._lease.check()
    except _lease_lib.LostError as error:
      self._leave(error)

  def end(self, state: str, error: str | None = None) -> None:
    """Records the outcome of the trial and releases its lease.

    Args:
      state: A final state of a lease, or `pending` for a trial to be resumed.
      error: Message of the error that ended the trial; None without one.
    """
    self._ended.set()
    if self._watch.is_alive():
      self._watch.join()
    self.check()
    if self._overdue and state in ('pending', 'failed'):
      state, error = 'failed', results_lib.overdue(self.plan)
    now = time.time()
    known = results_lib.facts(self.directory)
    facts: dict[str, Any] = {
      'status': state,
      'seconds': round(known.get('seconds', 0.0) + now - self._started, 3),
      'ended': None if state == 'pending' else now,
      'error': error,
      'started': None,
      'kills': None,
    }
    try:
      results_lib.write_facts(self.directory, **facts)
    except OSError as failure:  # a full disk: the lease has the state
      _print_error(
        f'{self.directory}/status.json cannot be written: {failure.strerror}'
      )
    self._lease.end(state)

  def outcome(self) -> str:
    """Returns `done` or `pruned`, for a run that has ended.

    Raises:
      ConfigError: If the run never wrote the metric.
    """
    if (self.directory / results_lib.PRUNED).exists():
      return 'pruned'
    lines = results_lib.lines(self.directory)
    if not results_lib.history(lines, self.plan.metric):
      known = ', '.join(results_lib.written(lines)) or 'nothing'
      raise errors.ConfigError(
        f'the metric {self.plan.metric} was never written to '
        f'{self.directory}/metrics.jsonl; written were {known}'
      )
    return 'done'

  def _beat(self) -> None:
    seconds = float(self.plan.settings['lease_seconds']) / _BEATS
    while not self._ended.wait(min(seconds, self._left())):
      try:
        self._lease.beat()
      except _lease_lib.LostError as error:
        self._leave(error)
      with contextlib.suppress(OSError):  # the lease file decides
        results_lib.write_facts(self.directory, heartbeat=time.time())
      if self._left() <= 0 and not self._overdue:
        self._overdue = True
        with contextlib.suppress(OSError):  # the scheduler reads it
          results_lib.write_facts(self.directory, overdue=True)
        _print_error(f'over Sweep.time_limit after {self._limit:g} s: stopping')
        main = threading.main_thread().ident
        if main is not None:  # interrupts a call that blocks
          signal.pthread_kill(main, signal.SIGTERM)
        grace = float(self.plan.settings['grace_seconds'])
        timer = threading.Timer(grace, self._give_up)
        timer.daemon = True
        timer.start()

  def _left(self) -> float:
    if self._limit is None or self._overdue:
      return float('inf')
    return max(0.0, self._started + self._limit - time.time())

  def _give_up(self) -> None:
    """Fails the trial if it has not stopped within the grace period."""
    if not self._ended.is_set():
      self.end('failed')
      os._exit(1)

  def _leave(self, error: errors.Error) -> None:
    """Exits at once, so that not even a checkpoint is written any more."""
    _print_error(f'error: {error}')
    os._exit(_LOST)


class Watch(action_lib.Action):
  """An Action (callback) that prunes: it compares with peers at equal steps.

  Args:
    plan: The plan of the sweep.
    trial: The trial of this process.
    check: Function that exits the process if the lease is lost.
  """

  hears_all = True

  def __init__(
    self, plan: plan_lib.Plan, trial: plan_lib.Trial, check: Callable[[], None]
  ):
    self._plan = plan
    self._trial = trial
    self._check = check
    self._source, _, self._tag = plan.metric.rpartition('/')
    self._pruner = plan.pruner

  def __call__(self, report: report_lib.Report) -> report_lib.Signal | None:
    self._check()
    if self._pruner is None or report.source != self._source:
      return None
    if self._tag not in report.scalars or report.is_last:
      return None
    path = self._plan.directory(self._trial) / results_lib.PRUNED
    with files.convert_os_errors(path):
      if path.exists():  # decided in an earlier attempt; it stays
        decided = int(json.loads(path.read_text('utf-8'))['step'])
        return report_lib.Signal.STOP if report.step >= decided else None
      reason = self._reason(self._pruner, report.step)
      if reason is None:
        return None
      files.write_json(path, reason)
    return report_lib.Signal.STOP

  def _reason(
    self, pruner: pruner_lib.Pruner, step: int
  ) -> Mapping[str, Any] | None:
    """Returns the reason to prune the trial; None if it goes on."""
    known = self._values(self._plan.directory(self._trial))
    own = [value for at, value in known if at <= step]
    previous = max((at for at, _ in known if at < step), default=0)
    if not own or not pruner.is_due(previous, step):
      return None
    others = [
      value
      for peer in self._plan.trials
      if peer.index != self._trial.index and peer.seed == self._trial.seed
      for at, value in self._values(self._plan.directory(peer))
      if at == step
    ]
    if pruner.keeps(own, others):
      return None
    better = sum(other > own[-1] for other in others)
    return {'step': step, 'better': better, 'compared': len(others) + 1}

  def _values(self, directory: pathlib.Path) -> list[tuple[int, float]]:
    found = results_lib.history(results_lib.lines(directory), self._plan.metric)
    goal = self._plan.goal
    return [(step, pruner_lib.comparable(value, goal)) for step, value in found]


def run(
  sweep_dir: str | pathlib.Path, index: int, work: Callable[[Trial], int]
) -> int:
  """Runs one trial of a sweep; returns the exit code.

  Args:
    sweep_dir: Directory of the sweep.
    index: Index of the trial, from 0.
    work: Function that runs the trial. It returns 0 when the trial has ended,
      another code when the trial was stopped and is to be resumed.

  Raises:
    RunDirectoryError: If `sweep_dir` holds no sweep, or another process runs
      the trial.
    ConfigError: If `index` is out of range, or the metric was never written.
    Error: If `work` raises it; the trial is then `failed`, or `diverged`.
  """
  plan = plan_lib.read(files.run_directory(sweep_dir))
  trial = plan.trial(index)
  lease = _lease(plan, index)
  cluster_resolver.leave(os.environ)
  if lease is None:
    print(f'Trial {index} is over; nothing to do.')
    return 0
  mine = Trial(plan, trial, lease)
  try:
    mine.begin()
    code = work(mine)
    state = 'pending' if code else mine.outcome()
  except _lease_lib.LostError:
    raise
  except errors.NonFiniteError as error:
    mine.end('diverged', _what(error))
    raise
  except Exception as error:
    mine.end('failed', _what(error))
    raise
  except BaseException:
    mine.end('pending')
    raise
  mine.end(state)
  return code


def check_flags(flags: Any) -> None:
  """Checks the flags that are given with --sweep_dir or --trial_index.

  Raises:
    ConfigError: If a flag is missing or conflicts with them.
  """
  index, mode = flags.trial_index, flags.mode
  if index is None and mode != 'describe':
    raise errors.ConfigError(
      '--trial_index is missing: it says which trial of --sweep_dir to run'
    )
  if index is not None and mode not in ('train', 'train_and_eval'):
    raise errors.ConfigError(
      f'--mode={mode} takes the --model_dir of a trial; --trial_index trains it'
    )
  if flags.model_dir:
    raise errors.ConfigError(
      f'--model_dir={flags.model_dir} with --sweep_dir: a trial has a '
      'directory of its own below the sweep; leave it out'
    )
  if flags.workers or flags.local_workers is not None:
    raise errors.ConfigError(
      'a trial is trained by one process; leave out --workers and '
      '--local_workers, and let Sweep run several trials at a time'
    )
  if flags.preempt_exit_code == 0:
    raise errors.ConfigError(
      '--preempt_exit_code=0 would make a trial that was stopped look done; '
      'choose another code'
    )


def _lease(plan: plan_lib.Plan, index: int) -> _lease_lib.Lease | None:
  """Takes the lease of a trial; returns None if the trial is over.

  A failed trial runs again, as it was requested by its index.
  """
  given = os.environ.pop(_lease_lib.HANDED, None)
  if given:
    signals_lib.end_with_parent()
    return _lease_lib.Lease(plan.sweep_dir / 'leases' / given).adopt()
  seen = _lease_lib.find(plan.sweep_dir, index)
  if seen.state in ('done', 'pruned'):
    return None
  if seen.state == 'running':
    age = _lease_lib.ages(plan.sweep_dir, {index: seen}).get(index, 0.0)
    limit = float(plan.settings['lease_seconds'])
    if not _lease_lib.is_free(seen, age, limit):
      raise errors.RunDirectoryError(
        f'trial {index} of {plan.sweep_dir} is run by {seen.who}, which gave a '
        f'sign of life {age:.0f} s ago; wait for it, or stop it'
      )
    _lease_lib.evict(seen)
  lease = _lease_lib.take(seen)
  if lease is None:
    raise errors.RunDirectoryError(
      f'trial {index} of {plan.sweep_dir} was just taken by another process; '
      'let that one run it'
    )
  return lease


def _what(error: BaseException) -> str:
  return f'{type(error).__name__}: {errors.one_line(error)}'


def _print_error(text: str) -> None:
  print(text, file=sys.stderr, flush=True)

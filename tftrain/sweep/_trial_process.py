"""The process of one trial, as the scheduler starts, stops and records it."""

from collections.abc import Sequence
import contextlib
import os
import pathlib
import re
import signal
import subprocess
import time

from tftrain import errors
from tftrain.platform import files
from tftrain.platform import resource_slots
from tftrain.sweep import _lease as _lease_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib

_KILLED = 128  # shells add the number of a fatal signal to it
_TAIL = 4000  # characters at the end of a log


class Child:
  """One attempt at one trial: a separate process group, with a log.

  Args:
    plan: The plan of the sweep.
    trial: The trial to run.
    slot: The CPU cores and GPUs that the process may use.
    lease: The lease of the trial, which the process will adopt.

  Raises:
    ConfigError: If the command cannot be started.
  """

  def __init__(
    self,
    plan: plan_lib.Plan,
    trial: plan_lib.Trial,
    slot: resource_slots.Slot,
    lease: _lease_lib.Lease,
  ):
    self.plan = plan
    self.trial = trial
    self.slot = slot
    self._given = lease.name
    self._began = time.time()
    self._progress = _metrics_file_size(plan.directory(trial))
    self._asked: float | None = None
    directory = plan.directory(trial)
    try:
      files.make_directory(directory, 'sweep_dir')
      with files.open_log(directory / 'log.txt') as log:
        self._process = subprocess.Popen(
          _trial_command(plan, trial),
          env={
            **os.environ,
            **slot.environment(),
            _lease_lib.HANDED: lease.name,
          },
          cwd=_cwd(plan),
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=subprocess.STDOUT,
          start_new_session=True,
        )
    except OSError as error:
      lease.end('pending')
      raise errors.ConfigError(
        f'cannot start {plan.command["argv"][0]!r}: {error.strerror}; plan the '
        'sweep with a command that runs here'
      ) from error
    except errors.Error:
      lease.end('pending')
      raise
    resource_slots.pin(self._process.pid, slot)

  def has_ended(self) -> bool:
    return self._process.poll() is not None

  def stop(self, grace: float) -> None:
    """Sends SIGTERM; kills the process `grace` seconds after the first call."""
    now = time.monotonic()
    if self._asked is None:
      self._asked = now
      self._send(signal.SIGTERM)
    elif now - self._asked > grace:
      self.kill()

  def kill(self) -> None:
    """Kills the process group at once."""
    self._send(signal.SIGKILL)

  def close(self, *, stopping: bool) -> None:
    """Records the outcome if the process could not do so itself.

    Args:
      stopping: Whether the process was asked to stop; its end is then not a
        failure.
    """
    code = self._process.wait()
    self.kill()  # its child processes must not outlive it
    seen = _lease_lib.find(self.plan.sweep_dir, self.trial.index)
    if seen.state == 'pending' and not stopping:
      self._end(seen, code)
    elif seen.state == 'running':
      if seen.path.name == self._given or seen.process() == 0:
        if stopping:
          self._note(seen, 'pending', None)
        else:
          self._end(seen, code)

  def _end(self, seen: _lease_lib.LeaseState, code: int) -> None:
    """Records a process that was killed, or that ended without an outcome."""
    number = -code if code < 0 else code - _KILLED
    if number <= 0:
      said = _last_line(self.plan.directory(self.trial) / 'log.txt')
      if code == 0:
        said = 'it ended without having taken part; does the command hand '
        said += '--sweep_dir and --trial_index on to tftrain?'
      self._note(seen, 'failed', f'exit code {code}: {said}')
      return
    directory = self.plan.directory(self.trial)
    facts = results_lib.facts(directory)
    if facts.get('overdue'):
      self._note(seen, 'failed', results_lib.overdue(self.plan))
      return
    known = int(facts.get('kills', 0))
    further = _metrics_file_size(directory) > self._progress
    kills = 1 if further else known + 1
    if kills < self.plan.settings['max_kills']:
      self._note(seen, 'pending', None, kills)
      return
    self._note(
      seen,
      'failed',
      f'ended by {_signal(number)} {kills} times in a row without getting '
      'further; is it out of memory?',
    )

  def _note(
    self,
    seen: _lease_lib.LeaseState,
    state: str,
    error: str | None,
    kills: int = 0,
  ) -> None:
    lease = _lease_lib.take(seen)
    if lease is None:
      return  # another process records the outcome
    directory = self.plan.directory(self.trial)
    known = results_lib.facts(directory)
    now = time.time()
    seconds = known.get('seconds', 0.0)
    if seen.state == 'running':  # else the process has added its time
      seconds += now - self._began
    with files.convert_os_errors(directory):
      results_lib.write_facts(
        directory,
        status=state,
        index=self.trial.index,
        seconds=round(seconds, 3),
        ended=None if state == 'pending' else now,
        error=error,
        kills=kills or None,
        started=None,
      )
    lease.end(state)

  def _send(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, number)


def repeated_failure(found: Sequence[results_lib.Result], since: float) -> str:
  """Returns advice if the last three ended trials failed alike, else ''."""
  ended = [r for r in found if float(r.facts.get('ended', 0.0)) >= since]
  ended.sort(key=lambda result: float(result.facts.get('ended', 0.0)))
  last = ended[-3:]
  texts = {_alike(result) for result in last}
  if len(last) < 3 or len(texts) > 1 or any(r.status != 'failed' for r in last):
    return ''
  error = str(last[-1].facts.get('error'))
  return (
    f'three trials in a row failed alike ({error}); mend that, then run with '
    f'--retry=failed; see {last[-1].directory}/log.txt'
  )


def _alike(result: results_lib.Result) -> str:
  text = str(result.facts.get('error')).replace(str(result.directory), '')
  return re.sub(r'\d+(\.\d+)?(e-?\d+)?', '#', text)


def _trial_command(plan: plan_lib.Plan, trial: plan_lib.Trial) -> list[str]:
  return [
    *plan.command['argv'],
    f'--sweep_dir={plan.sweep_dir.absolute()}',
    f'--trial_index={trial.index}',
  ]


def _cwd(plan: plan_lib.Plan) -> str | None:
  """Returns the directory of the plan command, if it still exists."""
  cwd = str(plan.command['cwd'])
  return cwd if os.path.isdir(cwd) else None


def _metrics_file_size(directory: pathlib.Path) -> int:
  """Returns the size of metrics.jsonl: it only grows, so it shows progress."""
  try:
    return (directory / 'metrics.jsonl').stat().st_size
  except FileNotFoundError:
    return 0


def _last_line(path: pathlib.Path) -> str:
  try:
    text = path.read_text(encoding='utf-8', errors='replace')[-_TAIL:]
  except FileNotFoundError:
    return 'it printed nothing'
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return errors.brief(lines[-1], 300) if lines else 'it printed nothing'


def _signal(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'

"""Checkpointer: saves and restores a run; one rename commits a checkpoint.

The newest checkpoint is found by listing the directory, never by a pointer
file. The file `checkpoint` is written only for TensorFlow's tools.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
import threading
from typing import Any, Protocol

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.checkpoint import format
from tftrain.checkpoint import retention
from tftrain.checkpoint import structure_diff
from tftrain.platform import files
from tftrain.platform import goodput
from tftrain.report import action as action_lib
from tftrain.report import dispatch
from tftrain.report import report as report_lib


class Saveable(Protocol):
  """The protocol of a saved object, such as a Trainer."""

  @property
  def step(self) -> int: ...

  def read_state(self) -> dict[str, tf.Tensor]: ...

  def write_state(self, state: Mapping[str, Any]) -> None: ...

  def facts(self) -> dict[str, Any]: ...

  def write_facts(self, facts: Mapping[str, Any]) -> None: ...


class Checkpointer(action_lib.Action):
  """Saves a Trainer, as an Action (callback), and restores it.

  A save copies the state on the calling thread and writes it on a second
  thread, so training continues meanwhile. Every value is read back and verified
  before the atomic rename that commits the checkpoint.

  Args:
    model_dir: The run's directory; its `checkpoints/` holds the checkpoints.
    trainer: The object to save.
    keep: Number of newest checkpoints to keep. The last finite checkpoint is
      never removed.
    keep_every: Steps between checkpoints that are kept for good, if any.
    best: Metric and number of best checkpoints to keep, if any.
    keep_behind: Steps by which one more finite checkpoint is older than the
      newest, as a target for rewinds; 0 disables it.
    durable: Whether a save must survive a power cut, not only a killed
      process. A durable save waits for the disk.
    max_failures: Number of consecutive saves that may fail before the run
      fails.
    actions: Actions of the run. Those that have a state (`EarlyStopping`) are
      saved and restored too.
    ledger: The goodput ledger to save too; None saves none.
    before_commit: Function that is called before a checkpoint is committed, to
      put the logs up to its step on disk: a summary writer's `flush`.

  Raises:
    ConfigError: If `keep` or `keep_every` is less than 1.
    RunDirectoryError: If `model_dir` is the address of an object store.
  """

  acts_on_stop = True
  part = 'checkpoint'

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    trainer: Saveable,
    *,
    keep: int = 3,
    keep_every: int | None = None,
    best: retention.KeepBest | None = None,
    keep_behind: int = 0,
    durable: bool = False,
    max_failures: int = 0,
    actions: Sequence[action_lib.ActionLike] = (),
    ledger: goodput.Ledger | None = None,
    before_commit: Callable[[], None] | None = None,
  ):
    self.directory = files.run_directory(model_dir) / 'checkpoints'
    self._trainer = trainer
    self._retention = retention.Retention(
      last=keep, every=keep_every, best=best, behind=keep_behind
    )
    self._durable = durable
    self._max_failures = max_failures
    self._stateful: dict[str, Any] = dict(dispatch.stateful(actions))
    if ledger is not None:
      self._stateful['Ledger'] = ledger
    self._before_commit = before_commit or (lambda: None)
    self._writer: threading.Thread | None = None
    self._writing: int | None = None
    self._failure: BaseException | None = None
    self._failures = 0
    self._known: dict[int, retention.Saved] = {}
    self._measured: tuple[int, dict[str, float]] = (-1, {})
    self._damaged: set[int] = set()
    self._tidy = False

  # The methods that are Actions.

  def __call__(self, report: report_lib.Report) -> None:
    self.save()
    if report.is_last or report.stopping:
      self.wait(last=True)

  def measure(self, report: report_lib.Report) -> None:
    """Records the metrics of a step, for the manifest of its checkpoint."""
    step, known = self._measured
    values = {f'{report.source}/{k}': v for k, v in report.scalars.items()}
    same = step == report.step
    self._measured = (report.step, {**known, **values} if same else values)

  def save_if_best(self, report: report_lib.Report) -> None:
    """Saves if the recorded metric of this step is among the best."""
    score = self._score(report.step)
    if score is None or report.step in self.steps():
      return
    new = retention.Saved(report.step, True, score)
    known = [self._about(step) for step in self.steps()]
    ranked = self._retention.ranked([*known, new])
    assert self._retention.best is not None  # else there is no score
    if new in ranked[: self._retention.best.keep]:
      self.save()

  # Saving.

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, oldest first."""
    found = format.committed_steps(self.directory)
    return [step for step in found if step not in self._damaged]

  def best_step(self) -> int | None:
    """Returns the kept step with the best value of `best`, if any."""
    known = [self._about(step) for step in self.steps()]
    ranked = self._retention.ranked(known)
    return ranked[0].step if ranked else None

  def tidy(self) -> None:
    """Removes leftovers of killed saves, and sets damaged checkpoints aside.

    Only the process that trains in the directory may do so; its first save
    calls this method.
    """
    files.remove_stale(self.directory)
    for step in sorted(self._damaged):
      path = format.checkpoint_path(self.directory, step)
      if path.exists():
        files.set_aside(path, 'damaged')
    self._damaged.clear()
    self._tidy = True

  def check_space(self) -> None:
    """Checks that the disk has space for the checkpoints of the run.

    Raises:
      RunDirectoryError: If the free space is too small for them.
    """
    size = _state_bytes(self._trainer.read_state())
    missing = max(self._retention.most - len(self.steps()), 0) + 1
    free = files.free_bytes(self.directory)
    if size * missing > free:
      raise errors.RunDirectoryError(
        f'{self.directory} has {_megabytes(free)} free, but {missing} more '
        f'checkpoints of {_megabytes(size)} will be written; free space, keep '
        'fewer, or choose a model_dir on another disk'
      )

  def save(self) -> None:
    """Starts to save the current step; a second thread writes the checkpoint.

    Raises:
      CheckpointError: If the previous save failed, and `max_failures` saves in
        a row before it.
    """
    step = self._trainer.step
    if step == self._writing:
      return
    self.wait()
    if step in self.steps():
      return
    files.make_directory(self.directory)
    if not self._tidy:
      self.tidy()
    # Reading a variable shares its buffer. The next write to the variable
    # copies the buffer first, so the values in `state` do not change.
    state = self._trainer.read_state()
    said = {
      'facts': self._trainer.facts(),
      'actions': {k: v.read_state() for k, v in self._stateful.items()},
      'metrics': {
        name: value if math.isfinite(value) else str(value)
        for name, value in self._measured[1].items()
        if self._measured[0] == step
      },
    }
    self._before_commit()
    self._known.pop(step, None)  # after a rewind a step is saved again
    self._writing = step
    self._writer = threading.Thread(
      target=self._write, args=(step, state, said), name='tftrain-checkpoint'
    )
    self._writer.start()

  @property
  def is_writing(self) -> bool:
    return self._writer is not None and self._writer.is_alive()

  def wait(self, *, last: bool = False) -> None:
    """Waits until the last save is committed.

    Args:
      last: Whether no save follows; then no failure is tolerated.

    Raises:
      CheckpointError: If the save failed, and `last` is true or `max_failures`
        saves in a row failed before it.
    """
    if self._writer is None:
      return
    self._writer.join()
    step, self._writer, self._writing = self._writing, None, None
    failure, self._failure = self._failure, None
    if failure is None:
      self._failures = 0
      return
    self._failures += 1
    newest = max(self.steps(), default=None)
    size = _state_bytes(self._trainer.read_state())
    free = files.free_bytes(self.directory)
    text = (
      f'saving step {step} to {self.directory} failed: '
      f'{errors.one_line(failure)} (about {_megabytes(size)} to write, '
      f'{_megabytes(free)} free); '
      + ('there is no good checkpoint yet' if newest is None else
         f'the last good checkpoint is at step {newest}')
    )  # fmt: skip
    if self._failures <= self._max_failures and not last:
      logging.error('%s; going on without', text)
      return
    raise errors.CheckpointError(
      f'{text}. Free space or mend the directory, then start the same command '
      'again'
    ) from failure

  def _write(
    self, step: int, state: dict[str, tf.Tensor], said: dict[str, Any]
  ) -> None:
    final = format.checkpoint_path(self.directory, step)
    try:
      with files.staged_directory(final, durable=self._durable) as staged:
        format.write_checkpoint(staged, step, state, said)
    except BaseException as error:  # raised later, on the training thread
      self._failure = error
      return
    try:
      files.write_text(
        self.directory / 'checkpoint',
        f'model_checkpoint_path: "{final.name}/{format.BUNDLE}"\n',
      )
      self._remove_old()
    except (OSError, errors.Error) as error:  # the save is committed
      logging.warning('After the save of step %d: %s', step, error)

  def _remove_old(self) -> None:
    steps = self.steps()
    kept = self._retention.kept([self._about(step) for step in steps])
    self._remove([step for step in steps if step not in kept])

  def _remove(self, steps: Sequence[int]) -> None:
    for step in steps:
      try:
        files.remove_directory(format.checkpoint_path(self.directory, step))
      except OSError as error:  # the save is committed
        logging.warning('Could not remove checkpoint %d: %s', step, error)

  def _about(self, step: int) -> retention.Saved:
    """Returns the summary of a step's checkpoint, from its manifest."""
    if step not in self._known:
      path = format.checkpoint_path(self.directory, step)
      try:
        manifest = format.read_manifest(path)
        best = self._retention.best
        score = manifest['metrics'].get(best.metric) if best else None
        score = None if score is None else float(score)
        about = retention.Saved(step, bool(manifest['finite']), score)
      except (OSError, ValueError, KeyError):
        return retention.Saved(step, finite=False)
      self._known[step] = about
    return self._known[step]

  def _score(self, step: int) -> float | None:
    best = self._retention.best
    at, values = self._measured
    return values.get(best.metric) if best and at == step else None

  # Restoring.

  def restore(self) -> int | None:
    """Restores the newest readable checkpoint.

    Returns:
      The restored step, or None if the run has no checkpoint.

    Raises:
      CheckpointError: If no existing checkpoint is readable, or the newest
        readable one belongs to another model, optimizer or data.
    """
    step, causes = self._restore_newest(math.inf)
    if causes and step is None:
      raise errors.CheckpointError(
        f'{self.directory} holds {len(causes)} checkpoints but none is '
        f'readable ({causes[0]}); refusing to start again from step 0. Bring '
        'one back, or choose a new model_dir'
      )
    return step

  def restore_step(self, step: int) -> bool:
    """Restores the checkpoint of a step; returns False if it does not exist.

    Raises:
      DamagedError: If the checkpoint is damaged.
      CheckpointError: If the checkpoint belongs to another run, or cannot be
        read at the moment.
    """
    path = format.checkpoint_path(self.directory, step)
    try:
      found = _read_checkpoint(path)
    except format.DAMAGED as error:
      raise errors.DamagedError(
        f'{path} is damaged: {errors.one_line(error)}; take another'
      ) from error
    if found is None:
      return False
    self._apply(path, *found)
    return True

  def go_back(self, step: int) -> int | None:
    """Rewinds to the newest finite checkpoint at or before `step`.

    Checkpoints after `step` are removed, as the run diverges from them.

    Returns:
      The restored step. None if there is no such checkpoint; then nothing is
      changed.
    """
    found, _ = self._restore_newest(step, finite=True)
    if found is not None:
      self._remove([later for later in self.steps() if later > step])
    return found

  def _restore_newest(
    self, at_most: float, *, finite: bool = False
  ) -> tuple[int | None, list[str]]:
    """Restores the newest readable checkpoint up to the step `at_most`.

    Returns:
      (the step or None, the errors of the damaged checkpoints skipped).
    """
    causes = []
    for step in reversed(format.committed_steps(self.directory)):
      if step > at_most or (finite and not self._about(step).finite):
        continue
      path = format.checkpoint_path(self.directory, step)
      try:
        read = _read_checkpoint(path)
      except format.DAMAGED as error:
        self._damaged.add(step)
        cause = f'{path.name}: {errors.one_line(error)}'
        logging.error('Damaged checkpoint passed over: %s', cause)
        causes.append(cause)
        continue
      if read is None:  # removed by its trainer meanwhile
        return self._restore_newest(at_most, finite=finite)
      self._apply(path, *read)
      return step, causes
    return None, causes

  def _apply(
    self,
    path: pathlib.Path,
    manifest: Mapping[str, Any],
    state: Mapping[str, Any],
  ) -> None:
    self._check(path, manifest)
    self._measured = (-1, {})  # metrics from before no longer apply
    self._trainer.write_state(state)
    self._trainer.write_facts(manifest['facts'])
    before, now = manifest['facts'].get('jit'), self._trainer.facts().get('jit')
    if before != now:
      logging.warning(
        '%s was trained with jit=%r, and goes on with jit=%r: steps from here '
        'on are rounded otherwise.',
        path,
        before,
        now,
      )
    for name, one in self._stateful.items():
      if name in manifest['actions']:
        one.write_state(manifest['actions'][name])
      else:
        logging.warning('%s says nothing of %s; it begins anew', path, name)

  def _check(self, path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a checkpoint of another run."""
    facts, mine = manifest['facts'], self._trainer.facts()
    differences = [
      f'{key}: checkpoint {_brief_json(facts.get(key))} vs now '
      f'{_brief_json(mine[key])}'
      for key in ('optimizers', 'seed', 'data')
      if facts.get(key) != json.loads(json.dumps(mine[key]))
    ]
    compared = structure_diff.Comparison(
      structure_diff.specs(manifest['values']),
      structure_diff.specs(self._trainer.read_state()),
    )
    differences += compared.differences()
    if not differences:
      return
    hint = compared.hint()
    raise errors.CheckpointError(
      f'{path} is of another run ({structure_diff.shortened(differences)}; '
      f'{len(compared.restored)} of {len(compared.ours)} values would fit'
      f'{f"; {hint}" if hint else ""}); restore the old configuration or '
      'choose a new model_dir'
    )


def _read_checkpoint(
  path: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Returns (manifest, state), or None if `path` does not exist (any more)."""
  try:
    return format.read_checkpoint(path)
  except format.DAMAGED as error:
    if format.is_transient(error):
      raise errors.CheckpointError(
        f'{path} cannot be read now ({errors.one_line(error)}), which does not '
        'mean that it is damaged; mend that, then start the same command again'
      ) from error
    if path.exists():
      raise
    return None


def _brief_json(value: Any) -> str:
  return errors.brief(json.dumps(value))


def _state_bytes(state: Mapping[str, tf.Tensor]) -> int:
  """Returns the bytes of all values, about one for each string."""
  return sum(
    int(tf.size(value)) * (value.dtype.size or 1) for value in state.values()
  )


def _megabytes(size: int) -> str:
  return f'{size / 1e6:,.1f} MB'

"""Checkpointer: saves a run and restores it. One rename commits a checkpoint.

"Latest" is found by listing, never by a pointer file; the file `checkpoint` is
written for TensorFlow's own tools.
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
from tftrain.report import dispatch
from tftrain.report import report as report_lib


class Saveable(Protocol):
  """What can be saved: a Trainer, or anything with its five members."""

  @property
  def step(self) -> int: ...

  def read_state(self) -> dict[str, tf.Tensor]: ...

  def write_state(self, state: Mapping[str, Any]) -> None: ...

  def facts(self) -> dict[str, Any]: ...

  def write_facts(self, facts: Mapping[str, Any]) -> None: ...


class Checkpointer:
  """Saves a Trainer, as an Action, and restores it.

  A save copies the state on the calling thread and writes it on another, so
  training goes on meanwhile. Every value is read back and compared before the
  rename that makes the checkpoint exist.

  Args:
    model_dir: The run's directory; checkpoints go to `checkpoints/` in it.
    trainer: What to save.
    keep: How many of the newest to keep. The last finite one is never removed.
    keep_every: Keeps one of every so many steps for good.
    best: Which of the best to keep.
    keep_behind: Keeps one that is at least so many steps behind, to go back to.
    durable: Whether a save must survive a power cut, not only a killed
      process; it waits for the disk.
    max_failures: How many saves in a row may fail before the run does.
    actions: Those among them that have a state (`EarlyStopping`) are saved
      and restored, too.
    before_commit: Called before a checkpoint comes into being, so that what
      was logged up to its step is on disk: a summary writer's `flush`.
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
    actions: Sequence[Any] = (),
    before_commit: Callable[[], None] | None = None,
  ):
    self.directory = files.run_directory(model_dir) / 'checkpoints'
    self._trainer = trainer
    self._retention = retention.Retention(
      last=keep, every=keep_every, best=best, behind=keep_behind
    )
    self._durable = durable
    self._max_failures = max_failures
    self._actions = dispatch.stateful(actions)
    self._before_commit = before_commit or (lambda: None)
    self._writer: threading.Thread | None = None
    self._writing: int | None = None
    self._failure: BaseException | None = None
    self._failures = 0
    self._known: dict[int, retention.Saved] = {}
    self._measured: tuple[int, dict[str, float]] = (-1, {})
    self._damaged: set[int] = set()
    self._tidy = False

  # Actions.

  def __call__(self, report: report_lib.Report) -> None:
    self.save()
    if report.is_last or report.stopping:
      self.wait(last=True)

  def measure(self, report: report_lib.Report) -> None:
    """Notes what was measured at a step; the checkpoint of it will say so."""
    step, known = self._measured
    values = {f'{report.source}/{k}': v for k, v in report.scalars.items()}
    same = step == report.step
    self._measured = (report.step, {**known, **values} if same else values)

  def save_if_best(self, report: report_lib.Report) -> None:
    """Saves if what was measured at this step is among the best."""
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
    """The steps of which there is a checkpoint, oldest first."""
    found = format.committed_steps(self.directory)
    return [step for step in found if step not in self._damaged]

  def best_step(self) -> int | None:
    """The step with the best value of `best`, as far as it was kept."""
    known = [self._about(step) for step in self.steps()]
    ranked = self._retention.ranked(known)
    return ranked[0].step if ranked else None

  def tidy(self) -> None:
    """Removes what a killed save left, and sets damaged checkpoints aside.

    Only whoever trains in the directory may do so; the first save does.
    """
    files.remove_stale(self.directory)
    for step in sorted(self._damaged):
      path = format.checkpoint_path(self.directory, step)
      if path.exists():
        files.set_aside(path, 'damaged')
    self._damaged.clear()
    self._tidy = True

  def check_space(self) -> None:
    """Raises RunDirectoryError now if the disk will be full later."""
    size = _size(self._trainer.read_state())
    missing = max(self._retention.most - len(self.steps()), 0) + 1
    free = files.free_bytes(self.directory)
    if size * missing > free:
      raise errors.RunDirectoryError(
        f'{self.directory} has {_megabytes(free)} free, but {missing} more '
        f'checkpoints of {_megabytes(size)} will be written; free space, keep '
        'fewer, or choose a model_dir on another disk'
      )

  def save(self) -> None:
    """Saves the present step; returns while it is still being written.

    Raises:
      CheckpointError: The save before this one failed.
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
    # Reading a variable shares its buffer; the next step that writes to it
    # copies first, so these values stay those of this moment.
    state = self._trainer.read_state()
    said = {
      'facts': self._trainer.facts(),
      'actions': {k: v.read_state() for k, v in self._actions.items()},
      'metrics': {
        name: value if math.isfinite(value) else str(value)
        for name, value in self._measured[1].items()
        if self._measured[0] == step
      },
    }
    self._before_commit()
    self._known.pop(step, None)  # a run that went back saves a step anew
    self._writing = step
    self._writer = threading.Thread(
      target=self._write, args=(step, state, said), name='tftrain-checkpoint'
    )
    self._writer.start()

  @property
  def is_writing(self) -> bool:
    return self._writer is not None and self._writer.is_alive()

  def wait(self, *, last: bool = False) -> None:
    """Returns when the last save is committed.

    Args:
      last: No save follows, so a failure is one.

    Raises:
      CheckpointError: It failed, and `max_failures` before it.
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
    size = _size(self._trainer.read_state())
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
    except BaseException as error:  # kept for the training thread to raise
      self._failure = error
      return
    try:
      files.write_text(
        self.directory / 'checkpoint',
        f'model_checkpoint_path: "{final.name}/{format.BUNDLE}"\n',
      )
      self._remove_old()
    except (
      OSError,
      errors.Error,
    ) as error:  # the save is committed all the same
      logging.warning('After the save of step %d: %s', step, error)

  def _remove_old(self) -> None:
    steps = self.steps()
    kept = self._retention.kept([self._about(step) for step in steps])
    self._remove([step for step in steps if step not in kept])

  def _remove(self, steps: Sequence[int]) -> None:
    for step in steps:
      try:
        files.remove_directory(format.checkpoint_path(self.directory, step))
      except OSError as error:  # a committed save has not failed by this
        logging.warning('Could not remove checkpoint %d: %s', step, error)

  def _about(self, step: int) -> retention.Saved:
    """What the manifest of a step says."""
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
      Its step, or None if there is no checkpoint at all.

    Raises:
      CheckpointError: There are checkpoints, but none is readable, or the
        newest readable one belongs to another model, optimizer or data.
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
    """Restores the checkpoint of a step; False if there is none (any more).

    Raises:
      DamagedError: It cannot be read.
      CheckpointError: It is of another run.
    """
    path = format.checkpoint_path(self.directory, step)
    try:
      found = _read(path)
    except format.DAMAGED as error:
      raise errors.DamagedError(
        f'{path} is damaged: {errors.one_line(error)}; take another'
      ) from error
    if found is None:
      return False
    self._apply(path, *found)
    return True

  def go_back(self, step: int) -> int | None:
    """Restores the newest finite checkpoint at or before `step`.

    What was saved after `step` is removed: the run takes another way from
    there. None if there is no such checkpoint; then nothing is changed.
    """
    found, _ = self._restore_newest(step, finite=True)
    if found is not None:
      self._remove([later for later in self.steps() if later > step])
    return found

  def _restore_newest(
    self, at_most: float, *, finite: bool = False
  ) -> tuple[int | None, list[str]]:
    """(the step, what was wrong with those passed over)."""
    causes = []
    for step in reversed(format.committed_steps(self.directory)):
      if step > at_most or (finite and not self._about(step).finite):
        continue
      path = format.checkpoint_path(self.directory, step)
      try:
        read = _read(path)
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
    self._measured = (-1, {})  # of a way that the run may not take again
    self._trainer.write_state(state)
    self._trainer.write_facts(manifest['facts'])
    for name, action in self._actions.items():
      if name in manifest['actions']:
        action.write_state(manifest['actions'][name])
      else:
        logging.warning('%s says nothing of %s; it begins anew', path, name)

  def _check(self, path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that is not of this run."""
    facts, mine = manifest['facts'], self._trainer.facts()
    differences = [
      f'{key}: checkpoint {_said(facts.get(key))} vs now {_said(mine[key])}'
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


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """(manifest, state); None if it is not there (any more)."""
  try:
    return format.read_checkpoint(path)
  except format.DAMAGED as error:
    if format.is_passing(error):
      raise errors.CheckpointError(
        f'{path} cannot be read now ({errors.one_line(error)}), which does not '
        'mean that it is damaged; mend that, then start the same command again'
      ) from error
    if path.exists():
      raise
    return None


def _said(value: Any) -> str:
  return errors.brief(json.dumps(value))


def _size(state: Mapping[str, tf.Tensor]) -> int:
  """Bytes of all values; of strings about one for each."""
  return sum(
    int(tf.size(value)) * (value.dtype.size or 1) for value in state.values()
  )


def _megabytes(size: int) -> str:
  return f'{size / 1e6:,.1f} MB'

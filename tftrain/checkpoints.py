"""Checkpoints: one directory per step, committed by one rename.

  checkpoints/ckpt-00001000/manifest.json     every value: shape, dtype, SHA-256
  checkpoints/ckpt-00001000/state.{index,data-00000-of-00001}   a TF bundle
  checkpoints/checkpoint                      a pointer for TensorFlow's tools

"Latest" is found by listing, never by the pointer.
"""

from collections.abc import Callable
from collections.abc import Mapping
import hashlib
import json
import pathlib
import re
import threading
from typing import Any, Protocol

from absl import logging
import keras
import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain import files
from tftrain import reports

_NAME = re.compile(r'ckpt-(\d{8,})')
_MANIFEST = 'manifest.json'
_BUNDLE = 'state'


class Saveable(Protocol):
  """What can be saved: a Trainer, or anything with its four members."""

  @property
  def step(self) -> int: ...

  def read_state(self) -> dict[str, tf.Tensor]: ...

  def write_state(self, state: Mapping[str, Any]) -> None: ...

  def facts(self) -> dict[str, Any]: ...


class Checkpointer:
  """Saves a Trainer, as an Action, and restores it.

  A save copies the state on the calling thread and writes it on another, so
  training goes on meanwhile. Every value is read back and compared before the
  rename that makes the checkpoint exist.

  Args:
    model_dir: The run's directory; checkpoints go to `checkpoints/` in it.
    trainer: What to save.
    keep: How many of the newest to keep. The last finite one is never removed.
    before_commit: Called before a checkpoint comes into being, so that what
      was logged up to its step is on disk: a summary writer's `flush`.
  """

  acts_on_stop = True

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    trainer: Saveable,
    *,
    keep: int = 3,
    before_commit: Callable[[], None] | None = None,
  ):
    if keep < 1:
      raise errors.ConfigError(f'keep must be at least 1, got {keep}')
    self.directory = pathlib.Path(model_dir) / 'checkpoints'
    self._trainer = trainer
    self._keep = keep
    self._before_commit = before_commit or (lambda: None)
    self._writer: threading.Thread | None = None
    self._failure: BaseException | None = None
    self._finite: dict[int, bool] = {}
    self._damaged: set[int] = set()
    self._tidy = False

  def __call__(self, report: reports.Report) -> None:
    self.save()
    if report.is_last or report.stopping:
      self.wait()

  def steps(self) -> list[int]:
    """The steps of which there is a checkpoint, oldest first."""
    found = committed_steps(self.directory)
    return [step for step in found if step not in self._damaged]

  def tidy(self) -> None:
    """Removes what a killed save left, and sets damaged checkpoints aside.

    Only whoever trains in the directory may do so; the first save does.
    """
    files.remove_stale(self.directory)
    for step in sorted(self._damaged):
      path = checkpoint_path(self.directory, step)
      if path.exists():
        files.set_aside(path, 'damaged')
    self._damaged.clear()
    self._tidy = True

  def save(self) -> None:
    """Saves the present step; returns while it is still being written.

    Raises:
      CheckpointError: The save before this one failed.
    """
    self.wait()
    step = self._trainer.step
    if step in self.steps():
      return
    files.make_directory(self.directory)
    if not self._tidy:
      self.tidy()
    # Reading a variable shares its buffer; the next step that writes to it
    # copies first, so these values stay those of this moment.
    state = self._trainer.read_state()
    facts = self._trainer.facts()
    self._before_commit()
    self._writer = threading.Thread(
      target=self._write, args=(step, state, facts), name='tftrain-checkpoint'
    )
    self._writer.start()

  def wait(self) -> None:
    """Returns when the last save is committed; raises if it failed."""
    if self._writer is not None:
      self._writer.join()
      self._writer = None
    failure, self._failure = self._failure, None
    if failure is not None:
      last = max(self.steps(), default=None)
      raise errors.CheckpointError(
        f'saving to {self.directory} failed: {failure}; the last good '
        f'checkpoint is at step {last}. Free space or mend the directory, '
        'then start the same command again'
      ) from failure

  def restore(self) -> int | None:
    """Restores the newest readable checkpoint.

    Returns:
      Its step, or None if there is no checkpoint at all.

    Raises:
      CheckpointError: There are checkpoints, but none is readable, or the
        newest readable one belongs to another model, optimizer or data.
    """
    causes = []
    for step in reversed(committed_steps(self.directory)):
      path = checkpoint_path(self.directory, step)
      try:
        manifest, state = read_checkpoint(path)
      except _DAMAGED as error:
        if not path.exists():  # removed by its trainer while it was read
          return self.restore()
        self._damaged.add(step)
        cause = f'{path.name}: {errors.one_line(error)}'
        logging.error('Damaged checkpoint passed over: %s', cause)
        causes.append(cause)
        continue
      self._check(path, manifest)
      self._trainer.write_state(state)
      return step
    if causes:
      raise errors.CheckpointError(
        f'{self.directory} holds {len(causes)} checkpoints but none is '
        f'readable ({causes[0]}); refusing to start again from step 0. Bring '
        'one back, or choose a new model_dir'
      )
    return None

  def _write(
    self, step: int, state: dict[str, tf.Tensor], facts: dict[str, Any]
  ) -> None:
    final = checkpoint_path(self.directory, step)
    try:
      with files.staged_directory(final) as staged:
        self._finite[step] = write_checkpoint(staged, step, state, facts)
      files.write_text(
        self.directory / 'checkpoint',
        f'model_checkpoint_path: "{final.name}/{_BUNDLE}"\n',
      )
      self._remove_old()
    except BaseException as error:  # kept for the training thread to raise
      self._failure = error

  def _remove_old(self) -> None:
    steps = self.steps()
    kept = set(steps[-self._keep :])
    finite = [step for step in steps if self._is_finite(step)]
    kept.update(finite[-1:])
    for step in steps:
      if step in kept:
        continue
      try:
        files.remove_directory(checkpoint_path(self.directory, step))
      except OSError as error:  # a committed save has not failed by this
        logging.warning('Could not remove checkpoint %d: %s', step, error)

  def _is_finite(self, step: int) -> bool:
    if step not in self._finite:
      try:
        path = checkpoint_path(self.directory, step) / _MANIFEST
        self._finite[step] = json.loads(path.read_text())['finite']
      except (OSError, ValueError, KeyError):
        self._finite[step] = False
    return self._finite[step]

  def _check(self, path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that is not of this run."""
    saved = manifest['values']
    ours = {
      name: {'shape': list(value.shape), 'dtype': value.dtype.name}
      for name, value in self._trainer.read_state().items()
    }
    differences = [f'missing {name}' for name in ours if name not in saved]
    differences += [f'unexpected {name}' for name in saved if name not in ours]
    differences += [
      f'{name}: checkpoint {saved[name]["dtype"]}{saved[name]["shape"]} vs '
      f'model {spec["dtype"]}{spec["shape"]}'
      for name, spec in ours.items()
      if name in saved
      and (saved[name]['shape'], saved[name]['dtype'])
      != (spec['shape'], spec['dtype'])
    ]
    facts, mine = manifest['facts'], self._trainer.facts()
    differences = [
      f'{key}: checkpoint {_brief(facts.get(key))} vs now {_brief(mine[key])}'
      for key in ('optimizers', 'seed', 'data')
      if facts.get(key) != json.loads(json.dumps(mine[key]))
    ] + differences
    if differences:
      more = len(differences) - 3
      raise errors.CheckpointError(
        f'{path} is of another run ({"; ".join(differences[:3])}'
        f'{f"; and {more} more" if more > 0 else ""}); restore the old '
        'configuration or choose a new model_dir'
      )


def checkpoint_path(directory: pathlib.Path, step: int) -> pathlib.Path:
  return directory / f'ckpt-{step:08d}'


def committed_steps(directory: pathlib.Path) -> list[int]:
  """The steps whose checkpoints lie in `directory`, oldest first."""
  try:
    names = [path.name for path in directory.iterdir()]
  except FileNotFoundError:
    return []
  except OSError as error:
    raise errors.RunDirectoryError(
      f'cannot read {directory}: {error.strerror}; choose another model_dir or '
      'change its permissions'
    ) from error
  matches = (_NAME.fullmatch(name) for name in names)
  return sorted(int(match[1]) for match in matches if match)


_DAMAGED = (OSError, ValueError, KeyError, IndexError, tf.errors.OpError)


def write_checkpoint(
  directory: pathlib.Path,
  step: int,
  state: Mapping[str, tf.Tensor],
  facts: Mapping[str, Any],
) -> bool:
  """Writes and verifies a bundle and its manifest; True if all is finite."""
  names = sorted(state)
  arrays = {name: state[name].numpy() for name in names}
  values = {
    name: {
      'shape': list(array.shape),
      'dtype': state[name].dtype.name,
      'sha256': _sha256(array),
    }
    for name, array in arrays.items()
  }
  finite = all(
    bool(np.isfinite(array).all())
    for array in arrays.values()
    if array.dtype.kind == 'f'
  )
  manifest = {
    'format': 1,
    'step': step,
    'finite': finite,
    'values': values,
    'facts': facts,
    'versions': {'tensorflow': tf.__version__, 'keras': keras.__version__},
  }
  with tf.device('CPU:0'):
    tf.raw_ops.SaveV2(
      prefix=str(directory / _BUNDLE),
      tensor_names=names,
      shape_and_slices=[''] * len(names),
      tensors=[state[name] for name in names],
    )
  files.write_json(directory / _MANIFEST, manifest)
  read_checkpoint(directory)
  return finite


def read_checkpoint(
  path: pathlib.Path,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Reads a checkpoint and proves each value by its digest."""
  manifest = json.loads((path / _MANIFEST).read_text(encoding='utf-8'))
  values = manifest['values']
  names = sorted(values)
  with tf.device('CPU:0'):
    tensors = tf.raw_ops.RestoreV2(
      prefix=str(path / _BUNDLE),
      tensor_names=names,
      shape_and_slices=[''] * len(names),
      dtypes=[tf.as_dtype(values[name]['dtype']) for name in names],
    )
  state = {
    name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)
  }
  for name, array in state.items():
    shape = values[name]['shape']
    if list(array.shape) != shape or _sha256(array) != values[name]['sha256']:
      raise ValueError(f'{name} differs from its digest in {_MANIFEST}')
  return manifest, state


def _sha256(array: np.ndarray) -> str:
  if array.dtype == object:  # strings
    return hashlib.sha256(b''.join(array.reshape(-1))).hexdigest()
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _brief(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 120 else text[:119] + '…'

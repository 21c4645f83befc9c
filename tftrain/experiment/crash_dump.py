"""Crash dump: state and batch of a non-finite step, for its replay.

crash/step-37/    a checkpoint of the state before step 37, with its batch
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.checkpoint import format
from tftrain.platform import files
from tftrain.train import trainer as trainer_lib

_BATCH = 'batch/'


def path_of(model_dir: pathlib.Path, step: int) -> pathlib.Path:
  return model_dir / 'crash' / f'step-{step}'


def write(
  model_dir: pathlib.Path,
  trainer: trainer_lib.Trainer,
  error: errors.NonFiniteError,
  texts: Mapping[str, str],
) -> None:
  """Writes the state before the failed step, and its batch.

  Errors of this function are only logged, because the error that ends the run
  takes precedence.

  Args:
    model_dir: Directory of the run.
    trainer: Trainer after the failed step, whose update was not applied.
    error: Error of the failed step.
    texts: File name -> text to keep with the dump, such as the configuration.
  """
  final = path_of(model_dir, error.step)
  try:
    files.make_directory(final.parent)
    if final.exists():  # of an earlier attempt
      files.remove_directory(final)
    with files.staged_directory(final) as staged:
      format.write_checkpoint(
        staged,
        error.step - 1,
        {**_state_before(trainer), **_batch_of(trainer)},
        {'facts': trainer.facts(), 'actions': {}, 'error': str(error)},
      )
      for name, text in texts.items():
        files.write_text(staged / name, text)
  except Exception as another:
    logging.error('%s could not be written: %s', final, another)
    return
  logging.error(
    'Wrote %s; --mode=replay --step=%d repeats the step and names the first '
    'operation that is not finite.',
    final,
    error.step,
  )


def restore(
  model_dir: pathlib.Path, step: int, trainer: trainer_lib.Trainer
) -> Any:
  """Restores the Trainer to the state before the step.

  Returns:
    The batch of the step. None if the dump has no batch; the Trainer then stays
    unchanged.

  Raises:
    DamagedError: If the dump is unreadable.
  """
  path = path_of(model_dir, step)
  try:
    _, values = format.read_checkpoint(path)
  except format.DAMAGED as error:
    raise errors.DamagedError(
      f'{path} is damaged: {errors.one_line(error)}; remove it, and replay '
      'starts from a checkpoint'
    ) from error
  state = {k: v for k, v in values.items() if not k.startswith(_BATCH)}
  leaves = [
    tf.constant(values[f'{_BATCH}{index}'])
    for index in range(len(values) - len(state))
  ]
  if not leaves:
    return None
  trainer.write_state(state)
  return tf.nest.pack_sequence_as(
    trainer.pipeline.element_spec, leaves, expand_composites=True
  )


def _state_before(trainer: trainer_lib.Trainer) -> dict[str, tf.Tensor]:
  state = trainer.read_state()
  state['trainer/step'] = tf.constant(trainer.step - 1, tf.int64)
  return state


def _batch_of(trainer: trainer_lib.Trainer) -> dict[str, tf.Tensor]:
  batch = trainer.last_batch()
  leaves = tf.nest.flatten(batch, expand_composites=True)
  return {
    f'{_BATCH}{index}': leaf
    for index, leaf in enumerate(leaves)
    if leaf is not None
  }

"""TPU checks: static shapes, dtypes and block length, before compilation."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from absl import logging
import keras
import tensorflow as tf

from tftrain import errors
from tftrain.interop import tracking

FEW_STEPS = 100


def check(strategy: Any, data: Any, task: Any, steps_per_loop: int) -> None:
  """Checks data, layers and loop of a run, if `strategy` is a TPUStrategy.

  Args:
    strategy: The run's `tf.distribute.Strategy`.
    data: The training Pipeline.
    task: The Task.
    steps_per_loop: Most steps in one call of the compiled loop.

  Raises:
    InputError: If a feature of `data` lacks a static shape.
    ConfigError: If a layer of `task` computes in float16.
  """
  if not isinstance(strategy, tf.distribute.TPUStrategy):
    return
  check_shapes(data.element_spec)
  layers = tracking.owned_by(task).sublayers.values()
  dtypes = [layer.compute_dtype for layer in layers]
  check_precision(dtypes)
  for line in advice(dtypes, steps_per_loop):
    logging.warning('%s', line)


def check_shapes(spec: Any) -> None:
  """Raises InputError, naming the feature, if a shape is not static."""
  for path, leaf in keras.tree.flatten_with_path(spec):
    if isinstance(leaf, tf.TensorSpec) and leaf.shape.is_fully_defined():
      continue
    name = '/'.join(map(str, path))
    what = f'feature {name!r} of a batch' if name else 'a batch'
    shape = leaf.shape
    ragged = not isinstance(leaf, tf.TensorSpec)
    if ragged or shape.rank is None or None in shape[1:]:
      remedy = 'give batcher=Padded(length), or set the shape in a map'
    else:
      remedy = (
        "let the data repeat, or give remainder='drop' or 'pad'; in tf.data "
        'drop_remainder=True'
      )
    raise errors.InputError(
      f'{what} has the shape {shape}, a TPU needs static ones; {remedy}'
    )


def check_precision(dtypes: Iterable[str]) -> None:
  """Raises ConfigError if a dtype is float16, which TPUs do not support."""
  if 'float16' in dtypes:
    raise errors.ConfigError(
      'a layer computes in float16, a TPU does not; set precision = '
      "'mixed_bfloat16'"
    )


def advice(dtypes: Iterable[str], steps_per_loop: int) -> Iterator[str]:
  """Yields a line of advice for each setting that makes a TPU slow."""
  if steps_per_loop < FEW_STEPS:
    yield (
      f'steps_per_loop={steps_per_loop} is few for a TPU: it waits for the '
      f'host after each block. Use {FEW_STEPS} or more.'
    )
  if 'bfloat16' not in dtypes:
    yield (
      'All layers compute in float32; a TPU is faster with precision = '
      "'mixed_bfloat16'."
    )

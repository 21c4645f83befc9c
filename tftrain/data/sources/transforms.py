"""Transforms of examples and batches: checks of user maps, select, padding."""

from collections.abc import Callable
from collections.abc import Sequence
import inspect
import re
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.interop import autograph

_RANDOM = re.compile(r'\b(Random\w+|TruncatedNormal|Multinomial|Rng\w+)\b')


def takes_seed(function: Callable[..., Any]) -> bool:
  """Returns whether `function` takes a seed besides the example."""
  try:
    parameters = inspect.signature(function).parameters.values()
  except (TypeError, ValueError):
    return False
  needed = [
    p
    for p in parameters
    if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    and (p.default is p.empty or p.name == 'seed')
  ]
  return len(needed) == 2


def refuse_random(name: str, spec: Any, function: Callable[..., Any]) -> None:
  """Raises InputError if `function` draws from a state that cannot be saved.

  Args:
    name: Argument name for messages.
    spec: Spec of the examples that `function` takes.
    function: Function of the user.
  """

  def zeros(leaf: Any) -> Any:
    if isinstance(leaf, tf.RaggedTensorSpec):  # one row of one entry
      entry = tf.zeros([1, *leaf.shape[2:]], leaf.dtype)
      return tf.RaggedTensor.from_row_lengths(entry, tf.ones([1], tf.int64))
    return tf.zeros([size or 1 for size in leaf.shape], leaf.dtype)

  example = tf.nest.map_structure(zeros, spec)
  seed = tf.zeros([2], tf.int32)
  arguments = (example, seed) if takes_seed(function) else (example,)
  tried = tf.data.Dataset.from_tensors(arguments).map(
    lambda *given: autograph.converted(function)(*given)
  )
  try:
    tf.raw_ops.DatasetToGraphV2(
      input_dataset=tf.data.experimental.to_variant(tried),
      external_state_policy=2,  # fail
    )
  except tf.errors.FailedPreconditionError as error:
    drawn = _RANDOM.search(str(error))
    if drawn:
      raise errors.InputError(
        f'{name} draws random numbers with {drawn[1]}, which no run can '
        'repeat; let Examples.map take a second argument `seed`, and use '
        'tf.random.stateless_uniform there'
      ) from error


def selected(batch: Any, names: Sequence[str]) -> tuple[Any, ...]:
  missing = [name for name in names if name not in batch]
  if missing:
    raise errors.InputError(
      f'Examples.select: there is no {missing[0]!r}; there are '
      f'{", ".join(batch)}'
    )
  return tuple(batch[name] for name in names)


_PADDING = -0.0
"""The weight of padding: equal to 0, yet told apart from a row of weight 0."""


def is_padding(weights: tf.Tensor) -> tf.Tensor:
  """Returns where float32 weights are those of padding, which `filled` added.

  A row of weight 0 counts in Keras's `sum_over_batch_size`, padding does not.
  """
  return tf.bitcast(weights, tf.int32) == tf.int32.min  # the bits of -0.0


def filled(batch: Any, rows: int) -> Any:
  """Pads a batch to `rows` rows, and adds weights: -0.0 for the added rows.

  The added rows are copies of the first row: a loss of zeros may be NaN.

  Raises:
    ConfigError: If the batch has ragged tensors.
  """
  if any(isinstance(leaf, tf.RaggedTensor) for leaf in tf.nest.flatten(batch)):
    raise errors.ConfigError(
      "Examples.remainder = 'pad' needs Padded or Bucketed: rows of ragged "
      'tensors cannot be filled up'
    )
  present = tf.cast(shuffle_lib.count(batch), tf.int32)

  def padded_with(filler: Any, leaf: tf.Tensor) -> tf.Tensor:
    paddings = [[0, rows - present]] + [[0, 0]] * (leaf.shape.rank - 1)
    filler = tf.cast(filler, leaf.dtype)
    padded = tf.pad(leaf, paddings, constant_values=filler)
    return tf.ensure_shape(padded, [rows, *leaf.shape[1:]])

  def unweighted(leaf: tf.Tensor) -> tf.Tensor:
    return padded_with(_PADDING, tf.cast(leaf, tf.float32))

  def copies(leaf: tf.Tensor) -> tf.Tensor:
    padded = padded_with('' if leaf.dtype == tf.string else 0, leaf)
    shape = [rows] + [1] * (leaf.shape.rank - 1)
    is_present = tf.reshape(tf.range(rows) < present, shape)
    return tf.where(is_present, padded, padded[:1])

  weights = tf.ones([present], tf.float32)
  if isinstance(batch, dict):
    made = {'weights': weights, **batch}
    return {
      name: tf.nest.map_structure(
        unweighted if name == 'weights' else copies, part
      )
      for name, part in made.items()
    }
  parts = batch if isinstance(batch, tuple) else (batch,)
  *data, given = parts if len(parts) == 3 else (*parts, weights)
  return (
    *tf.nest.map_structure(copies, tuple(data)),
    tf.nest.map_structure(unweighted, given),
  )

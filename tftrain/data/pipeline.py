"""Pipeline: the interface between a run and its data."""

import abc
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.distribute import row_sharding


class Pipeline(abc.ABC):
  """Batches as a pure function of (seed, step), readable from any step.

  Attributes:
    element_spec: Nest of `tf.TensorSpec` of one global batch.
    batch_size: Rows of a global batch; None if it varies.
    num_examples: Examples of one epoch; None if unknown.
    num_steps: Batches until the data ends; None if the data repeats without end
      or its end is unknown.
    repeats: True if the data is known to have no end.
    has_cursor: True if the step alone does not determine the beginning of a
      batch. Then `dataset` yields (batch, cursor), and continues from a cursor:
      `dataset(seed, start_step, cursor)`. The cursor, int64 `[2]`, is the
      beginning of the next batch.
    keeps_iterator: True if checkpoints save the iterator itself, because
      nothing less determines the position. `dataset` then starts at step 0.
    restarts: True if a resumed run starts its data over.
    lost: Damaged records that were left out.
    pads: True if the last rows of a batch may be padding of weight zero.
    rearranges: True if rows are not single examples in their order.
  """

  element_spec: Any
  batch_size: int | None = None
  num_examples: int | None = None
  num_steps: int | None = None
  repeats: bool = False
  has_cursor: bool = False
  keeps_iterator: bool = False
  restarts: bool = False
  lost: int = 0
  pads: bool = False
  rearranges: bool = False

  def check_resumable(self) -> None:
    """Raises InputError if a stopped run could not resume exactly."""
    return

  def decoder(self) -> Any:  # a serving_decoder.Decoder
    """Returns a Decoder of serialized records; None for other data."""
    return None

  @abc.abstractmethod
  def dataset(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """Returns the batches of steps `start_step`, `start_step + 1`, ..."""

  def batch(self, seed: int, step: tf.Tensor) -> Any:
    """Returns the batch of `step` as a graph expression, or None.

    A batch that is cheap to compute in the training graph itself saves the
    hand-over from the input threads at every step.
    """
    del seed, step
    return None

  def row_numbers(
    self, seed: int, step: tf.Tensor, n: tf.Tensor, most: int | tf.Tensor
  ) -> tf.Tensor | None:
    """Returns the rows of the batches of `n` steps, or None; traceable.

    Args:
      seed: Seed of the order.
      step: The first step, int64.
      n: Number of steps, int64.
      most: Number of steps in the result, static for XLA; rows after `n` are
        0.

    Returns:
      int64 `[most, batch]`, for `rows`. None if the rows of the data are not
      in memory.
    """
    del seed, step, n, most
    return None

  def rows(self, numbers: tf.Tensor) -> Any:
    """Returns the batch of these rows; traceable, also by XLA."""
    raise NotImplementedError

  def options(self) -> Mapping[str, Any]:
    """Returns what `with_options` can change: argument -> value."""
    return {}

  def with_options(self, **options: Any) -> 'Pipeline':
    """Returns a pipeline of the same data with other `options`."""
    raise NotImplementedError

  def part(self, share: row_sharding.Share) -> 'Pipeline | None':
    """Returns the same batches with only the rows of `share`, or None.

    The other rows are not made. A batch without rows of `share` has 0 rows. The
    result is None if the pipeline does not support shares, or if the values
    would change.
    """
    del share
    return None

  @property
  def steps_per_epoch(self) -> float | None:
    """The batches per epoch, a fraction if batches straddle its end."""
    if self.num_examples is None or self.batch_size is None:
      return None
    return self.num_examples / self.batch_size

  def label_range(self) -> tuple[int, int] | None:
    """Returns the smallest and largest integer label; None if unknown."""
    return None

  def stages(self, seed: int) -> list[tuple[str, tf.data.Dataset]]:
    """Returns (name, dataset up to this stage), for timing the stages."""
    return [('batch', self.dataset(seed))]

  def explain(self, error: BaseException) -> str | None:
    """Returns the fault in the data that made reading fail; None if unknown."""
    del error
    return None

  def peek(self, n: int = 1, seed: int = 0) -> list[Any]:
    """Returns the first `n` batches, as NumPy arrays."""
    with explained(self):
      found = list(self.dataset(seed).take(n))
    batches = [batch[0] for batch in found] if self.has_cursor else found
    return [tf.nest.map_structure(_as_numpy, batch) for batch in batches]

  def describe(self) -> str:
    """Returns the numbers of examples and steps and the batch spec, as text."""
    examples = 'unknown' if self.num_examples is None else self.num_examples
    steps = 'without end' if self.repeats else self.num_steps or 'unknown'
    lines = [f'examples: {examples}', f'steps: {steps}']
    if self.lost:
      lines.append(f'damaged records left out: {self.lost}')
    batch = tf.nest.map_structure(  # in the syntax of `features`
      lambda leaf: _spec_text(leaf, ','), self.element_spec
    )
    return '\n'.join([*lines, f'batch: {batch}'])

  @abc.abstractmethod
  def fingerprint(self) -> Mapping[str, Any]:
    """Returns JSON that identifies the batches; a resumed run must match it."""


@contextlib.contextmanager
def explained(pipeline: Pipeline) -> Iterator[None]:
  """Raises an InputError that names the cause if TensorFlow cannot read."""
  try:
    yield
  except UnicodeDecodeError as error:  # TensorFlow quotes the raw record
    text = pipeline.explain(error)
    if text is None:
      raise
    raise errors.InputError(text) from error
  except tf.errors.OpError as error:
    reading = 'IteratorGetNext' in str(error)
    if isinstance(error, tf.errors.OutOfRangeError) or not reading:
      raise
    text = pipeline.explain(error) or errors.one_line(error)
    raise errors.InputError(text) from error


def described(batch: Any) -> str:
  """Returns the dtypes and shapes of a batch, or of its specs, as text."""
  return ', '.join(map(_spec_text, tf.nest.flatten(batch)))


def non_finite_entry(batch: Any) -> str | None:
  """Returns the first NaN or infinite entry, as `batch[0][5, 2] is nan`.

  None if all are finite.
  """
  for path, leaf in leaves_by_expression(batch).items():
    if not tf.is_tensor(leaf) or not leaf.dtype.is_floating:
      continue
    values = np.asarray(leaf).astype(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
      place = tuple(bad[0])
      index = f'[{", ".join(map(str, place))}]' if place else ''
      return f'{path}{index} is {values[place]:g}'
  return None


def leaves_by_expression(batch: Any) -> dict[str, Any]:
  """Returns Python expression (`batch[0]['x']`) -> leaf, or its TypeSpec."""
  if isinstance(batch, Mapping):
    items = [(f'[{key!r}]', batch[key]) for key in sorted(batch, key=str)]
  elif isinstance(batch, tuple | list):
    items = [(f'[{index}]', part) for index, part in enumerate(batch)]
  else:
    return {'batch': batch}
  return {
    name.replace('batch', f'batch{key}', 1): leaf
    for key, part in items
    for name, leaf in leaves_by_expression(part).items()
  }


def _spec_text(leaf: Any, comma: str = ', ') -> str:
  if not (hasattr(leaf, 'dtype') and hasattr(leaf, 'shape')):
    return str(leaf)
  shape, sizes = tf.TensorShape(leaf.shape), '...'
  if shape.rank is not None:
    sizes = comma.join('?' if n is None else str(n) for n in shape)
  return f'{leaf.dtype.name}[{sizes}]'


def _as_numpy(leaf: Any) -> Any:
  return leaf if isinstance(leaf, tf.RaggedTensor) else np.asarray(leaf)

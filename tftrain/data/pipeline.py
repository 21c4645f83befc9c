"""What a training run asks of its data."""

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
  """Batches as a pure function of (seed, step): it can start at any step.

  Attributes:
    element_spec: Nest of `tf.TensorSpec` of one global batch.
    batch_size: Rows of a global batch, None where it varies.
    num_examples: Examples of one epoch, None where unknown.
    num_steps: Batches until the data ends; None where it repeats for ever or
      its end is unknown.
    repeats: Whether it is known to go on for ever.
    has_cursor: Whether the step alone does not say where a batch begins. Then
      `dataset` yields (batch, cursor), the cursor, int64 `[2]`, being where the
      next one begins, and takes it: `dataset(seed, start_step, cursor)`.
    keeps_iterator: Whether checkpoints keep the iterator itself, because
      nothing less says where a batch begins. `dataset` then starts at step 0.
    restarts: Whether a resumed run begins its data anew.
    lost: Damaged records that were left out.
    pads: Whether the last rows of a batch may be fillers of weight zero.
    rearranges: Whether rows are not the examples one by one, in their order.
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
    """Raises InputError if a run that is stopped could not go on exactly."""
    return

  def decoder(self) -> Any:  # a Decoder, which stands further down
    """What it makes of serialized records, or None if it reads none."""
    return None

  @abc.abstractmethod
  def dataset(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """The batches of steps `start_step`, `start_step + 1`, ..."""

  def batch(self, seed: int, step: tf.Tensor) -> Any:
    """The batch of `step` as a graph expression, or None.

    Where a batch is cheap to compute in the training graph itself, doing so
    spares the hand-over from the input threads at every step.
    """
    del seed, step
    return None

  def part(self, share: row_sharding.Share) -> 'Pipeline | None':
    """The same batches, of each only the rows of a share; the rest is not made.

    A batch of which the share has no row comes with 0 rows. None where it
    cannot be done, or would change a number.
    """
    del share
    return None

  @property
  def steps_per_epoch(self) -> float | None:
    """Batches per epoch; a fraction where batches straddle its end."""
    if self.num_examples is None or self.batch_size is None:
      return None
    return self.num_examples / self.batch_size

  def label_range(self) -> tuple[int, int] | None:
    """Smallest and largest integer label where that is known, else None."""
    return None

  def stages(self, seed: int) -> list[tuple[str, tf.data.Dataset]]:
    """Name -> dataset up to there, for whoever asks where the time goes."""
    return [('batch', self.dataset(seed))]

  def explain(self, error: BaseException) -> str | None:
    """What of the data made reading it fail, where that can be found out."""
    del error
    return None

  def peek(self, n: int = 1, seed: int = 0) -> list[Any]:
    """The first `n` batches, as NumPy arrays."""
    with explained(self):
      found = list(self.dataset(seed).take(n))
    batches = [batch[0] for batch in found] if self.has_cursor else found
    return [tf.nest.map_structure(_as_numpy, batch) for batch in batches]

  def describe(self) -> str:
    """What comes out of it, in a few lines."""
    examples = 'unknown' if self.num_examples is None else self.num_examples
    steps = 'without end' if self.repeats else self.num_steps or 'unknown'
    lines = [f'examples: {examples}', f'steps: {steps}']
    if self.lost:
      lines.append(f'damaged records left out: {self.lost}')
    batch = tf.nest.map_structure(  # as `features` are written
      lambda leaf: _described(leaf, ','), self.element_spec
    )
    return '\n'.join([*lines, f'batch: {batch}'])

  @abc.abstractmethod
  def fingerprint(self) -> Mapping[str, Any]:
    """What must be equal for a resumed run to see the same batches (JSON)."""


@contextlib.contextmanager
def explained(pipeline: Pipeline) -> Iterator[None]:
  """Makes an InputError of what TensorFlow says when reading fails."""
  try:
    yield
  except UnicodeDecodeError as error:  # TensorFlow's text quotes the record
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
  """The dtypes and shapes of what is in a batch, or of its specs."""
  return ', '.join(map(_described, tf.nest.flatten(batch)))


def _described(leaf: Any, comma: str = ', ') -> str:
  if not (hasattr(leaf, 'dtype') and hasattr(leaf, 'shape')):
    return str(leaf)
  shape, sizes = tf.TensorShape(leaf.shape), '...'
  if shape.rank is not None:
    sizes = comma.join('?' if n is None else str(n) for n in shape)
  return f'{leaf.dtype.name}[{sizes}]'


def _as_numpy(leaf: Any) -> Any:
  return leaf if isinstance(leaf, tf.RaggedTensor) else np.asarray(leaf)

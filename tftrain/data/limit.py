"""FirstBatches: limits data to its first batches, or repeats only these."""

from collections.abc import Callable
from collections.abc import Mapping
import copy
import functools
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data import dataset_pipeline
from tftrain.data import pipeline as pipeline_lib
from tftrain.distribute import row_sharding


class FirstBatches(pipeline_lib.Pipeline):
  """The first batches of `data`, once or repeated without end.

  Repeated batches test whether a model can learn at all: it should overfit a
  few batches. They are kept in memory, so that they stay the same if a dataset
  shuffles anew each time.

  Args:
    data: Pipeline to limit.
    batches: Number of batches.
    repeat: True starts over after the last of the batches, without end.

  Raises:
    InputError: If `batches` is not a whole number of at least 1.

  Attributes:
    data: As given.
  """

  def __init__(
    self, data: pipeline_lib.Pipeline, batches: int, *, repeat: bool = False
  ):
    errors.check_count('FirstBatches.batches', batches, errors.InputError)
    self.data = data
    self._batches = batches
    self._repeat = repeat
    self.element_spec = data.element_spec
    self.batch_size = data.batch_size
    self.lost, self.pads = data.lost, data.pads
    self.rearranges = data.rearranges
    # Epochs remain those of `data`, so that a run measured in epochs does not
    # shrink to a few steps.
    self.num_examples = data.num_examples
    self.repeats = repeat
    if not repeat:
      known = data.num_steps
      self.num_steps = batches if known is None else min(batches, known)
      if data.num_examples is not None and data.batch_size is not None:
        most = self.num_steps * data.batch_size
        self.num_examples = min(data.num_examples, most)

  def check_resumable(self) -> None:
    self.data.check_resumable()

  def decoder(self) -> Any:
    return self.data.decoder()

  def dataset(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
    first = self.data.dataset(seed).take(self._batches)
    if self.data.has_cursor:
      first = first.map(lambda batch, cursor: batch)
    if not self._repeat:
      return first.skip(start_step)
    skipped = start_step % self._count(first) if start_step else 0
    return first.cache().repeat().skip(skipped)

  def _count(self, first: tf.data.Dataset) -> int:
    """Returns the number of batches; fewer if the data ends earlier."""
    if self.data.repeats:
      return self._batches
    if self.data.num_steps is not None:
      return min(self._batches, self.data.num_steps)
    return int(first.reduce(tf.zeros([], tf.int64), lambda n, _: n + 1))

  def batch(self, seed: int, step: tf.Tensor) -> Any:
    if not self._repeat:  # the reader stops at `num_steps`
      return self.data.batch(seed, step)
    ends = self.data.num_steps
    count = self._batches if ends is None else min(self._batches, ends)
    return self.data.batch(seed, step % count)

  def part(self, share: row_sharding.Share) -> 'FirstBatches | None':
    data = self.data.part(share)
    if data is None:
      return None
    other = copy.copy(self)
    other.data, other.element_spec = data, data.element_spec
    return other

  def label_range(self) -> tuple[int, int] | None:
    return self.data.label_range()

  def stages(self, seed: int) -> list[tuple[str, tf.data.Dataset]]:
    return self.data.stages(seed)

  def explain(self, error: BaseException) -> str | None:
    return self.data.explain(error)

  def fingerprint(self) -> Mapping[str, Any]:
    return {
      'kind': 'first batches',
      'batches': self._batches,
      'repeat': self._repeat,
      'data': dict(self.data.fingerprint()),
    }


def limited(
  data: pipeline_lib.Pipeline,
  batches: int | None,
  what: str,
  *,
  repeat: bool = False,
) -> pipeline_lib.Pipeline:
  """Returns the first batches of `data`, or `data` if `batches` is None.

  Args:
    data: Pipeline to limit.
    batches: Number of batches, or None.
    what: Name of the data in the warning that is logged.
    repeat: True repeats the batches without end.
  """
  if batches is None:
    return data
  found = FirstBatches(data, batches, repeat=repeat)
  how = 'again and again' if repeat else 'and nothing else'
  logging.warning('%s: the first %d batches, %s.', what, batches, how)
  return found


def all_limited(
  data: Mapping[str, Callable[[], Any]], batches: int | None
) -> Mapping[str, Callable[[], Any]]:
  """Returns name -> function that makes limited evaluation data."""
  if batches is None:
    return data

  def make(name: str) -> pipeline_lib.Pipeline:
    given = dataset_pipeline.as_pipeline(data[name], training=False)
    return limited(given, batches, f'eval/{name}')

  return {name: functools.partial(make, name) for name in data}

"""Iterator state: saves, restores and tests tf.data iterators."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.platform import files
from tftrain.platform import hashing

_NAME = 'iterator'
# Batches compared, at most.
_PROBED = 16


def save_iterator(iterator: Any) -> tf.Tensor:
  """Returns the iterator's state with its buffers, a string `[1]`."""
  with files.scratch_directory() as directory:
    tf.train.Checkpoint(iterator=iterator).write(str(directory / _NAME))
    index = (directory / f'{_NAME}.index').read_bytes()
    data = (directory / f'{_NAME}.data-00000-of-00001').read_bytes()
  return tf.constant([len(index).to_bytes(8, 'big') + index + data])


def load_iterator(iterator: Any, saved: Any) -> None:
  """Restores a new iterator of the same dataset to the saved position."""
  content = bytes(np.asarray(saved)[0])
  end = 8 + int.from_bytes(content[:8], 'big')
  with files.scratch_directory() as directory:
    files.write_bytes(directory / f'{_NAME}.index', content[8:end])
    files.write_bytes(directory / f'{_NAME}.data-00000-of-00001', content[end:])
    checkpoint = tf.train.Checkpoint(iterator=iterator)
    checkpoint.read(str(directory / _NAME)).assert_consumed()


def resume_failure(make: Callable[[], tf.data.Dataset]) -> str | None:
  """Returns the reason that a dataset cannot resume exactly, or None.

  Makes the dataset twice and compares some batches, past the end of the first
  epoch if it is near. Then saves an iterator midway, restores it, and compares
  the batches that follow.

  Args:
    make: Makes the dataset as a run would, repeated and seeded.
  """
  iterator, twin = iter(make()), iter(make())
  head = list(_batch_digests(iterator, _PROBED // 2))
  try:
    position = save_iterator(iterator)
  except (tf.errors.OpError, ValueError) as error:
    return errors.one_line(error).rstrip('.')
  whole = head + list(_batch_digests(iterator, _PROBED // 2))
  if list(_batch_digests(twin, _PROBED)) != whole:
    return 'made twice, it yields different batches'
  resumed = iter(make())
  load_iterator(resumed, position)
  if list(_batch_digests(resumed, _PROBED // 2)) != whole[len(head) :]:
    return 'saved midway, it goes on with other batches'
  return None


def _batch_digests(iterator: Iterator[Any], n: int) -> Iterator[str]:
  for _ in range(n):
    batch = next(iterator, None)
    if batch is None:
      return
    leaves = tf.nest.flatten(batch, expand_composites=True)
    yield hashing.arrays_digest(('', leaf.numpy()) for leaf in leaves)

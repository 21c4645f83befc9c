"""Splits the rows of a global batch across replicas and hosts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Cut = Callable[[Any], tuple[Any, Any]]
"""Maps the number of rows of a global batch to the (begin, end) of a share."""


class Share(NamedTuple):
  """The rows of the replicas `first` to `end - 1`, out of `replicas`.

  Rows are assigned in order and as evenly as possible; the first replicas get
  one more row if the rows do not divide evenly. The rows of consecutive
  replicas are therefore contiguous, and splitting this range among these
  replicas alone gives each replica the same rows.
  """

  first: Any
  end: Any
  replicas: int

  def of(self, rows: Any) -> tuple[Any, Any]:
    """Returns the (begin, end) of the share in `rows` rows; ints or tensors."""
    each, extra = rows // self.replicas, rows % self.replicas
    begin, end = (
      replica * each + _lesser(replica, extra)
      for replica in (self.first, self.end)
    )
    return begin, end

  def of_filled(self, size: int) -> Cut:
    """Returns `of` for batches that are padded to `size` rows afterwards."""
    begin, end = self.of(size)
    return lambda rows: (_lesser(begin, rows), _lesser(end, rows))


def _lesser(one: Any, other: Any) -> Any:
  if isinstance(one, int) and isinstance(other, int):
    return min(one, other)
  return tf.minimum(tf.cast(one, other.dtype), other)

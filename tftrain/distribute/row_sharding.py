"""Whose rows of a global batch are whose: one rule for replicas and hosts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

Cut = Callable[[Any], tuple[Any, Any]]
"""From the rows of a global batch to where one's own begin and end."""


class Share(NamedTuple):
  """The rows of the replicas `first` to `end - 1`, out of `replicas`.

  Rows are dealt in order and as evenly as they go; the first replicas get one
  more where they do not go evenly. So the rows of replicas that follow each
  other are one piece, and that piece, dealt among them alone, gives each the
  same rows again.
  """

  first: Any
  end: Any
  replicas: int

  def of(self, rows: Any) -> tuple[Any, Any]:
    """Where its rows of so many begin and end; numbers or tensors."""
    each, extra = rows // self.replicas, rows % self.replicas
    begin, end = (
      replica * each + _lesser(replica, extra)
      for replica in (self.first, self.end)
    )
    return begin, end

  def of_filled(self, size: int) -> Cut:
    """The same of batches that are filled up to `size` rows afterwards."""
    begin, end = self.of(size)
    return lambda rows: (_lesser(begin, rows), _lesser(end, rows))


def _lesser(one: Any, other: Any) -> Any:
  if isinstance(one, int) and isinstance(other, int):
    return min(one, other)
  return tf.minimum(tf.cast(one, other.dtype), other)

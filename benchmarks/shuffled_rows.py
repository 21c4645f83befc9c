"""Shuffled row numbers of data in memory, for loops that gather batches."""

from collections.abc import Iterator

import numpy as np


def blocks(examples: int, batch_size: int, steps: int) -> Iterator[np.ndarray]:
  """Yields the rows of `steps` batches, `[steps, batch_size]`, int32.

  They are one permutation of all examples after another.
  """
  random = np.random.default_rng(0)
  rows = np.empty(0, np.int32)
  taken = steps * batch_size
  while True:
    while len(rows) < taken:
      order = random.permutation(examples).astype(np.int32)
      rows = np.concatenate([rows, order])
    yield rows[:taken].reshape(steps, batch_size)
    rows = rows[taken:]

"""Batches, one of them not finite."""

import numpy as np

from tests.support import small_tasks


def in_order(arrays, batch_size=8):
  """Batches in the order of the rows, over and over: 8 to an epoch."""
  x, y = arrays
  count = len(y) // batch_size

  def batch(index):
    at = slice(index % count * batch_size, (index % count + 1) * batch_size)
    return x[at], y[at]

  return [batch(index) for index in range(200)]


def one_bad(step, steps=200):
  """Batches that are fine but for that of `step`, counted from 1."""
  batches = in_order(small_tasks.arrays())[:steps]
  x, y = batches[step - 1]
  batches[step - 1] = (np.full_like(x, np.nan), y)
  return batches

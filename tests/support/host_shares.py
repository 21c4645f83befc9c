"""Shares of a batch, one for each of several workers."""

from tftrain.distribute import row_sharding


def shares_of(workers, local):
  replicas = workers * local
  return [
    row_sharding.Share(w * local, (w + 1) * local, replicas)
    for w in range(workers)
  ]

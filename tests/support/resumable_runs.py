"""Experiments on data of the user's own, to be stopped and resumed."""

import functools

from tests.support import small_tasks
import tftrain

X, Y = small_tasks.arrays()


def experiment(data, steps):
  return tftrain.Experiment(
    functools.partial(small_tasks.supervised, dropout=0.2),
    data,
    steps=steps,
    log_every=10,
    checkpoint_every=7,
    export=False,
  )

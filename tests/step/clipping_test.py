"""Gradient clipping by units: in any precision."""

import keras

from tests.support import step_runs


def test_clipping_by_units_takes_any_precision():
  dense = keras.layers.Dense(3, dtype='float64')
  _, report = step_runs.train(
    lambda: step_runs.supervised(step_runs.layered(dense)),
    3,
    clip_adaptive=0.01,
  )
  assert report.scalars['loss'] > 0

"""Mixed precision: trains close to full precision."""

import keras
import pytest
import tensorflow as tf

from tests.support import small_tasks
from tests.support import step_runs
import tftrain


@pytest.mark.parametrize('precision', ['mixed_bfloat16', 'mixed_float16'])
def test_mixed_precision_trains_close_to_full(precision, tmp_path):
  losses = {}
  for name in ('float32', precision):
    experiment = tftrain.Experiment(
      lambda: small_tasks.supervised(keras.optimizers.Adam(0.01)),
      lambda: tftrain.Arrays(small_tasks.arrays(), 16),
      steps=150,
      precision=name,
      export=False,
    )
    run = experiment.prepare(tmp_path / name)
    losses[name] = run.train().scalars['train/loss']
    assert run.trainer.task.model.layers[0].compute_dtype == (
      name.removeprefix('mixed_')
    )
  assert losses[precision] == pytest.approx(losses['float32'], rel=0.2)
  scale = run.trainer.task.step_runner.scalars().get('loss_scale')
  assert (scale is not None) == (precision == 'mixed_float16')
  assert keras.config.dtype_policy().name == 'float32'


@pytest.mark.parametrize('scale', ['auto', None])
def test_weights_of_half_precision_learn(scale):
  dense = keras.layers.Dense(3, dtype='float16')
  trainer, report = step_runs.train(
    lambda: step_runs.supervised(step_runs.layered(dense)),
    30,
    loss_scale=scale,
    ema=0.9,
  )
  assert 0.1 < report.scalars['gradient_norm'] < 10
  assert report.scalars['loss'] < 0.9
  averages = trainer.task.step_runner.appliers()['optimizer'].average.variables
  assert {average.dtype for average in averages} == {tf.float32}

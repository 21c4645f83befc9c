"""examples/transformer: causal, and learns on one replica and on two."""

import keras
import numpy as np
import pytest

from examples import stdlib_text
from examples import transformer
from tests.support import example_runs
import tftrain
from tftrain import testing


def small_transformer():
  return transformer.make_task(
    lambda: keras.optimizers.AdamW(0.006), 32, size=32, heads=2, blocks=1
  )


def test_a_transformer_does_not_see_what_comes_after():
  model = small_transformer().model
  codes = stdlib_text.windows('test', 32)[:2].copy()
  before = model(codes).numpy()
  codes[:, 20:] = ord('x')
  after = model(codes).numpy()
  np.testing.assert_array_equal(before[:, :20], after[:, :20])
  assert (before[:, 20:] != after[:, 20:]).any()


@pytest.mark.slow
def test_transformer_learns_more_than_frequencies():
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy('mixed_bfloat16')
  try:
    task, scalars = example_runs.trained(
      small_transformer,
      transformer.train_data(length=32),
      steps=120,
      update=tftrain.Update(
        clip_norm=1.0, ema=0.95, no_decay='bias|norm|gamma|beta'
      ),
    )
  finally:
    keras.config.set_dtype_policy(before)
  assert task.model.blocks[0].wide.compute_dtype == 'bfloat16'
  frequencies = example_runs.unigram_entropy(stdlib_text.windows('train', 33))
  assert scalars['loss'] < 0.88 * frequencies
  scores = tftrain.Evaluator(task, transformer.test_data(length=32)).evaluate()
  assert scores['loss'] < 0.88 * frequencies
  batch = next(iter(transformer.test_data(length=32).dataset(0)))
  sample = task.artifacts(batch)['sample'].removeprefix('```\n')
  assert sample.startswith(stdlib_text.decode(batch[0, :-1].numpy()))
  assert len(sample) == 32 + 200 + len('\n```')
  assert sample == task.artifacts(batch)['sample'].removeprefix('```\n')


@pytest.mark.slow
def test_transformer_does_not_depend_on_the_replicas():
  testing.assert_replica_invariant(
    small_transformer,
    transformer.train_data(batch_size=8, length=32),
    replicas=(2,),
    accumulate=(),
  )

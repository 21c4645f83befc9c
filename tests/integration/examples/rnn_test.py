"""examples/rnn: learns characters, on one replica and on two."""

import keras
import pytest

from examples import rnn
from examples import stdlib_text
from tests.support import example_runs
import tftrain
from tftrain import testing


@pytest.mark.slow
def test_rnn_learns_more_than_frequencies():
  lines = stdlib_text.lines('train', 40)
  data = tftrain.Arrays(lines, batch_size=32)
  _, scalars = example_runs.trained(
    lambda: rnn.make_task(lambda: keras.optimizers.Adam(0.01)),
    data,
    steps=120,
    update=tftrain.Update(clip_norm=1.0),
  )
  assert scalars['loss'] < 0.8 * example_runs.unigram_entropy(lines[:, 1:])


@pytest.mark.slow
def test_rnn_does_not_depend_on_the_replicas():
  testing.assert_replica_invariant(
    lambda: rnn.make_task(units=8),
    tftrain.Arrays(stdlib_text.lines('train', 30), batch_size=8),
    replicas=(2,),
    accumulate=(),
  )


def test_rnn_shows_lines_that_it_wrote():
  task = rnn.make_task(units=8)
  batch = next(iter(rnn.test_data().dataset(0)))
  sample = task.artifacts(batch)['sample']
  fence, *lines, end = sample.split('\n')
  assert (fence, end, len(lines)) == ('```', '```', 12)
  assert len(set(lines)) > 1
  assert sample == task.artifacts(batch)['sample']

"""Feed: a train_step of the user's own gets the whole batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.distribute import coordinator
from tftrain.distribute import row_sharding
from tftrain.train import counters as counters_lib
from tftrain.train import feed as feed_lib
from tftrain.train import inner_loop


class Whole(tftrain.SupervisedTask):
  """Looks at all of a batch."""

  def train_step(self, batch):
    return super().train_step(batch)


@pytest.mark.parametrize('kind', [tftrain.SupervisedTask, Whole])
def test_an_own_train_step_gets_the_whole_batch(kind):
  model = small_tasks.model(dropout=0.0)
  task = kind(
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
  )
  feed = feed_lib.Feed(tftrain.Arrays(small_tasks.arrays(), 8), seed=0)

  class Second(coordinator.SingleWorker):
    rows = row_sharding.Share(1, 2, 2)

  counters = counters_lib.Counters.make(Second())
  inner_loop.train_loop(task, feed, counters, None, None)
  step = tf.constant(5, tf.int64)
  whole = feed.again(5)
  own = whole if kind is Whole else [leaf[4:] for leaf in whole]
  for one, other in zip(feed.take(None, step), own, strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(feed.first_batch()[0]) == 8
  inner_loop.eval_loop(
    task, feed, counters, None
  )  # eval_step is not the user's
  assert len(feed.take(None, step)[0]) == 4

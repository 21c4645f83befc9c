"""Strategies: rows among replicas, and names and sizes that are refused."""

import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.distribute import replica_batch
from tftrain.distribute import row_sharding
from tftrain.distribute import strategy as strategy_lib


def test_a_step_deals_what_it_holds_among_its_own_replicas():
  strategy = tf.distribute.MirroredStrategy(
    [device.name for device in tf.config.list_logical_devices('CPU')][:2],
    cross_device_ops=tf.distribute.ReductionToOneDevice(),
  )

  @tf.function(autograph=False)
  def deal(batch):
    with replica_batch.batch_share(row_sharding.Share(4, 6, 8)):
      return replica_batch.run_on_rows(lambda rows: rows, batch)

  class Local(tf.distribute.ReplicaContext):
    pass

  # Of 8 replicas these two are numbers 4 and 5.
  number = tf.distribute.ReplicaContext.replica_id_in_sync_group
  Local.replica_id_in_sync_group = property(lambda self: number.fget(self) + 4)
  with strategy.scope():
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(
        tf.distribute.ReplicaContext,
        'replica_id_in_sync_group',
        Local.replica_id_in_sync_group,
      )
      dealt = strategy.experimental_local_results(deal(tf.range(5)))
  assert [part.numpy().tolist() for part in dealt] == [[0, 1, 2], [3, 4]]


def test_a_batch_size_that_does_not_divide_by_the_replicas():
  with error_lines.refused(
    errors.InputError, 'batch_size 7', '2 replicas', '6 or 8'
  ):
    small_tasks.trainer(
      tftrain.Arrays(small_tasks.arrays(), 7), strategy='mirrored'
    )


def test_an_unknown_strategy():
  with error_lines.refused(
    errors.StrategyError, "'mirored'", 'one_device, mirrored'
  ):
    tftrain.make_strategy('mirored')
  with error_lines.refused(errors.StrategyError, 'too late'):
    strategy_lib.set_local_devices(3)

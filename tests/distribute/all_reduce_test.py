"""All-reduce: bucket sizes, algorithms and implementations."""

import keras
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.distribute import all_reduce as all_reduce_lib
from tftrain.distribute import strategy as strategy_lib
from tftrain.step import gradients as gradients_lib


def collectives(bucket_mb):
  """How many each replica has for the gradients of three large kernels."""
  # TensorFlow's own choice, as on GPUs; it is only traced here.
  strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
  all_reduce_lib.Reduction(bucket_mb=bucket_mb).put_on(strategy)

  @tf.function(autograph=False)
  def step(kernel):
    def reduce():
      packed = [kernel * i for i in range(3)]
      return gradients_lib._all_reduce([packed], [kernel[0, 0]])

    return strategy.run(reduce)

  definition = step.get_concrete_function(tf.zeros([400, 400])).graph
  nodes = [node.type for node in definition.get_operations()]
  return sum(node.startswith('CollectiveReduce') for node in nodes) // 2


def test_the_bucket_size_reaches_the_collectives():
  # Three kernels of 640 kB, and the vector of sums, which goes first.
  assert collectives(None) == 1
  assert collectives(100.0) == 1
  assert collectives(1.0) == 2  # a bucket holds that much at least
  assert collectives(0.1) == 3


@pytest.mark.slow
@pytest.mark.parametrize('all_reduce', ['auto', 'hierarchical'])
def test_an_algorithm_of_ones_own_changes_no_result(all_reduce):
  states = []
  for options in ({}, {'all_reduce': all_reduce, 'replicas': 2}):
    keras.utils.set_random_seed(3)
    strategy = strategy_lib.make_strategy('mirrored', **options)
    with strategy.scope():
      task = small_tasks.supervised()
    data = tftrain.Arrays(small_tasks.arrays(), 8)
    trainer = tftrain.Trainer(task, data, strategy=strategy)
    trainer.train(20)
    states.append(small_tasks.state_of(trainer))
  assert all_reduce_lib.of(strategy).all_reduce == all_reduce
  small_tasks.assert_close(*states, 1e-6)


def test_workers_are_given_the_implementation():
  given = tf.distribute.experimental.CommunicationImplementation
  for name, expected in (('ring', given.RING), ('nccl', given.NCCL)):
    options = all_reduce_lib.Reduction(name).communication()
    assert options.implementation == expected

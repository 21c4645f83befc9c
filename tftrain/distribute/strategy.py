"""Which devices a run uses: tf.distribute strategies by name."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import contextvars
import logging
import os
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import _rendezvous
from tftrain.distribute import _tpu
from tftrain.distribute import all_reduce as all_reduce_lib
from tftrain.distribute import cluster_resolver
from tftrain.distribute import devices
from tftrain.distribute import row_sharding

NAMES = ('auto', 'one_device', 'mirrored', 'multi_worker_mirrored', 'tpu')


def make_strategy(
  name: str = 'auto',
  *,
  replicas: int | None = None,
  all_reduce: str = 'auto',
  bucket_mb: float | None = None,
) -> tf.distribute.Strategy:
  """Makes the strategy called `name`.

  `one_device` is TensorFlow's default strategy. `mirrored` copies the model to
  every local GPU, or to every logical CPU device where there is no GPU.
  `multi_worker_mirrored` does so in several processes, which TF_CONFIG or a
  scheduler tells of (see clusters.py). `tpu` is the TPU that TPU_NAME names.
  `auto` is `multi_worker_mirrored` where this process is one of several,
  `mirrored` where there are several GPUs, else `one_device`.

  Args:
    name: Which.
    replicas: For `mirrored`: on how many of the devices; None means all.
    all_reduce: How gradients are added up: `auto`, `nccl`, for `mirrored` also
      `hierarchical`, for `multi_worker_mirrored` also `ring`.
    bucket_mb: Megabytes of gradients that go at once; None leaves it to
      TensorFlow.

  Raises:
    StrategyError: There is no strategy of that name, or it cannot be had.
  """
  reduction = all_reduce_lib.Reduction(all_reduce, bucket_mb)
  if name in ('auto', 'multi_worker_mirrored'):
    cluster = cluster_resolver.resolve(os.environ)
    if cluster:
      return reduction.put_on(_multi_worker(cluster, reduction))
    if name != 'auto':
      raise errors.StrategyError(
        f'strategy {name!r} needs to know the other workers; set TF_CONFIG, '
        'give --workers and --task, or --local_workers=2'
      )
  if name == 'tpu':
    reduction.check(name, gpus=0, devices=1)
    return _tpu.connect()
  gpus = tf.config.list_logical_devices('GPU')
  if name == 'auto':
    name = 'mirrored' if len(gpus) > 1 else 'one_device'
  if name == 'one_device':
    reduction.check(name, gpus=len(gpus), devices=1)
    return tf.distribute.get_strategy()
  if name == 'mirrored':
    return reduction.put_on(_mirrored(gpus, replicas, reduction))
  raise errors.StrategyError(
    f'no strategy is called {name!r}; choose one of {", ".join(NAMES)}'
  )


def _mirrored(
  gpus: Sequence[Any], replicas: int | None, reduction: all_reduce_lib.Reduction
) -> tf.distribute.Strategy:
  found = gpus or tf.config.list_logical_devices('CPU')
  names = [device.name for device in found][:replicas]
  reduction.check('mirrored', gpus=len(gpus), devices=len(names))
  cross_device_ops = reduction.cross_device_ops()
  if not gpus and cross_device_ops is None:
    # The default on CPUs, collectives, gives keys by strategy but remembers
    # them by process: a second strategy in one process gets shapes mixed up.
    cross_device_ops = tf.distribute.ReductionToOneDevice()
  return tf.distribute.MirroredStrategy(
    names, cross_device_ops=cross_device_ops
  )


def _multi_worker(
  cluster: cluster_resolver.Cluster, reduction: all_reduce_lib.Reduction
) -> tf.distribute.Strategy:
  if devices.have_started():
    raise errors.StrategyError(
      "strategy 'multi_worker_mirrored' comes too late: TensorFlow has "
      'started; make it before anything else of TensorFlow is used (in gin: '
      'eval_data = @name, without parentheses)'
    )
  gpus = tf.config.list_physical_devices('GPU')  # starts none
  reduction.check('multi_worker_mirrored', gpus=len(gpus), devices=1)
  _rendezvous.wait(cluster)
  resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
    tf.train.ClusterSpec({'worker': list(cluster.workers)}),
    task_type='worker',
    task_id=cluster.task,
    rpc_layer='grpc',
  )
  try:
    with _rendezvous.connecting(cluster):
      return tf.distribute.MultiWorkerMirroredStrategy(
        resolver, reduction.communication()
      )
  except (RuntimeError, tf.errors.OpError) as error:
    raise errors.StrategyError(
      f'{cluster.this} cannot join the others: {errors.one_line(error)}; is '
      f'{cluster.workers[cluster.task]} free?'
    ) from error


def count_devices() -> int:
  """How many replicas `mirrored` can have."""
  gpus = tf.config.list_logical_devices('GPU')
  return len(gpus or tf.config.list_logical_devices('CPU'))


def set_local_devices(count: int) -> None:
  """Splits the CPU into `count` logical devices, to try replicas on a laptop.

  Raises:
    StrategyError: TensorFlow has started already; it can only be set before.
  """
  if count < 1:
    raise errors.StrategyError(f'local_devices must be at least 1, got {count}')
  cpu = tf.config.list_physical_devices('CPU')[0]
  parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
  try:
    tf.config.set_logical_device_configuration(cpu, parts)
  except RuntimeError as error:
    raise errors.StrategyError(
      f'local_devices={count} comes too late: TensorFlow has started; set it '
      'before anything else of TensorFlow is used'
    ) from error


# What a step's batch holds where it is not the whole global batch. A context,
# as between a loop and `run_on_rows` stand the user's train_step and loss.
_HELD: contextvars.ContextVar[row_sharding.Share | None] = (
  contextvars.ContextVar('held', default=None)
)


@contextlib.contextmanager
def holding(share: row_sharding.Share | None) -> Iterator[None]:
  """While it is traced, batches hold only these rows of the global batch."""
  token = _HELD.set(share)
  try:
    yield
  finally:
    _HELD.reset(token)


def run_on_rows(function: Callable[[Any], Any], batch: Any) -> Any:
  """Runs `function` on every replica, each with its rows of a global batch.

  Nothing in it happens before the batch is there: at the end of the data not
  even the seed of a dropout moves.
  """
  held = _HELD.get()  # here: replicas are traced in threads of their own

  def on_replica(batch: Any) -> Any:
    with tf.control_dependencies(tf.nest.flatten(batch)):
      return function(_own_rows(batch, held))

  with _eager_is_fine():
    return tf.distribute.get_strategy().run(on_replica, args=(batch,))


@contextlib.contextmanager
def _eager_is_fine() -> Iterator[None]:
  """Mutes the advice to compile: what runs eagerly here runs once, to build."""

  def mute(record: logging.LogRecord) -> bool:
    return 'Strategy eagerly' not in record.getMessage()

  logger = tf.get_logger()
  logger.addFilter(mute)
  try:
    yield
  finally:
    logger.removeFilter(mute)


def on_first_replica(values: Any) -> Any:
  """What `run_on_rows` returned, as the first replica of this host has it."""
  strategy = tf.distribute.get_strategy()
  return tf.nest.map_structure(
    lambda value: strategy.experimental_local_results(value)[0], values
  )


def sum_over_replicas(function: Callable[[Any], Any], batch: Any) -> Any:
  """Runs `function` on every replica's rows and adds up the scalars."""
  strategy = tf.distribute.get_strategy()
  return tf.nest.map_structure(
    lambda value: strategy.reduce(tf.distribute.ReduceOp.SUM, value, None),
    run_on_rows(function, batch),
  )


def _own_rows(batch: Any, held: row_sharding.Share | None) -> Any:
  """This replica's rows of a batch, all of them or those of `held`.

  Rows are dealt in order and as evenly as they go, so one host iterator feeds
  all replicas and every row of a ragged last batch is used exactly once.
  """
  context = tf.distribute.get_replica_context()
  replicas = context.num_replicas_in_sync
  replica = context.replica_id_in_sync_group
  if held is not None:
    replicas, replica = held.end - held.first, replica - held.first
  if replicas == 1:
    return batch
  if divides(batch, replicas):
    return part(batch, replicas, replica)

  def deal(leaf: tf.Tensor) -> tf.Tensor:
    own = row_sharding.Share(replica, replica + 1, replicas)
    begin, end = own.of(tf.shape(leaf)[0])
    return leaf[begin:end]

  return tf.nest.map_structure(deal, batch)


def divides(batch: Any, parts: int) -> bool:
  """Whether it is known now that a batch can be cut into equal parts."""
  leaves = tf.nest.flatten(batch)
  return all(
    leaf.shape.is_fully_defined() and leaf.shape[0] % parts == 0
    for leaf in leaves
  )


def part(batch: Any, parts: int, index: Any) -> Any:
  """Part `index` of a batch that divides; shapes stay static."""
  return tf.nest.map_structure(
    lambda leaf: tf.reshape(leaf, [parts, -1, *leaf.shape[1:]])[index], batch
  )


def first_part(batch: Any, parts: int) -> Any:
  """The first of `parts` parts of a batch; a row per replica at least."""
  if parts == 1:
    return batch
  least = tf.distribute.get_strategy().num_replicas_in_sync
  rows = tf.maximum(batch_size(batch) // parts, least)
  return tf.nest.map_structure(lambda leaf: leaf[:rows], batch)


def batch_size(batch: Any) -> tf.Tensor:
  """Rows of a batch: the first dimension of its first leaf, an int32 scalar."""
  return tf.shape(tf.nest.flatten(batch)[0])[0]


def check_divides(
  global_batch_size: int | None, strategy: tf.distribute.Strategy
) -> None:
  """Raises InputError unless every replica gets the same number of rows."""
  replicas = strategy.num_replicas_in_sync
  if global_batch_size and global_batch_size % replicas:
    lower = global_batch_size // replicas * replicas
    choices = [str(size) for size in (lower, lower + replicas) if size]
    raise errors.InputError(
      f'batch_size {global_batch_size} does not divide by {replicas} replicas; '
      f'use {" or ".join(choices)}'
    )

"""Distribution strategies: creates tf.distribute strategies by name."""

from collections.abc import Sequence
import os
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import _rendezvous
from tftrain.distribute import _tpu
from tftrain.distribute import all_reduce as all_reduce_lib
from tftrain.distribute import cluster_resolver
from tftrain.distribute import devices

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
  scheduler describes (see cluster_resolver.py). `tpu` is the TPU that TPU_NAME
  names. `auto` is `multi_worker_mirrored` if this process is one of several
  workers, `mirrored` if there are several GPUs, else `one_device`.

  Args:
    name: `auto`, `one_device`, `mirrored`, `multi_worker_mirrored` or `tpu`.
    replicas: Number of devices for `mirrored`; None means all.
    all_reduce: Algorithm that sums gradients: `auto`, `nccl`, for `mirrored`
      also `hierarchical`, for `multi_worker_mirrored` also `ring`.
    bucket_mb: Megabytes of gradients in one transfer; None leaves the size to
      TensorFlow.

  Raises:
    StrategyError: If `name` is unknown, or the strategy is not available with
      these settings on this machine.
  """
  reduction = all_reduce_lib.Reduction(all_reduce, bucket_mb)
  if name in ('auto', 'multi_worker_mirrored'):
    cluster = cluster_resolver.resolve(os.environ)
    if cluster:
      return reduction.put_on(_multi_worker(cluster, reduction))
    if name != 'auto':
      raise errors.StrategyError(
        f'strategy {name!r} needs to know the other workers; set TF_CONFIG, '
        'give --workers and --task_index, or --local_workers=2'
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
    # The default on CPUs, collectives, numbers keys per strategy but stores
    # them per process: a second strategy in one process mixes up shapes.
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
  gpus = tf.config.list_physical_devices('GPU')  # starts no device
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
  """Returns the number of replicas that `mirrored` can have."""
  gpus = tf.config.list_logical_devices('GPU')
  return len(gpus or tf.config.list_logical_devices('CPU'))


def set_local_devices(count: int) -> None:
  """Splits the CPU into `count` logical devices, to try replicas on a laptop.

  Args:
    count: Number of logical devices.

  Raises:
    StrategyError: If `count` is less than 1, or TensorFlow has already started.
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

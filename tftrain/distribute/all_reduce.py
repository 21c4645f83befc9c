"""All-reduce of gradients: algorithm and bucket size."""

import dataclasses

import tensorflow as tf

from tftrain import errors

NAMES = ('auto', 'nccl', 'hierarchical', 'ring')


@dataclasses.dataclass(frozen=True)
class Reduction:
  """The all-reduce settings of a strategy.

  Attributes:
    all_reduce: Name of the algorithm; `auto` leaves the choice to TensorFlow.
    bucket_mb: Megabytes of gradients in one transfer, so that the first bucket
      is sent while the last gradients are computed; None leaves the size to
      TensorFlow. The size is a hint: a single device sends nothing.

  Raises:
    StrategyError: If `all_reduce` is unknown, or `bucket_mb` is not positive.
  """

  all_reduce: str = 'auto'
  bucket_mb: float | None = None

  def __post_init__(self) -> None:
    if self.all_reduce not in NAMES:
      raise errors.StrategyError(
        f'all_reduce {self.all_reduce!r} is none; choose one of '
        f'{", ".join(NAMES)}'
      )
    if self.bucket_mb is not None and not self.bucket_mb > 0:
      raise errors.StrategyError(
        f'bucket_mb must be more than 0, got {self.bucket_mb}; leave it out, '
        'or try 25'
      )

  def check(self, strategy: str, *, gpus: int, devices: int) -> None:
    """Checks that a strategy and the machine support these settings.

    Args:
      strategy: Name of the strategy.
      gpus: Number of GPUs.
      devices: Number of devices of the strategy in this process.

    Raises:
      StrategyError: If the strategy or the machine does not support them.
    """
    name = self.all_reduce
    fits = {
      'mirrored': ('auto', 'nccl', 'hierarchical'),
      'multi_worker_mirrored': ('auto', 'nccl', 'ring'),
    }.get(strategy, ('auto',))
    if name not in fits:
      raise errors.StrategyError(
        f'all_reduce {name!r} cannot be had with strategy {strategy!r}; use '
        f'{" or ".join(fits)}'
      )
    if name == 'nccl' and not gpus:
      raise errors.StrategyError(
        "all_reduce 'nccl' needs GPUs, and TensorFlow sees none; use 'auto'"
      )
    if name == 'hierarchical' and devices < 2:
      raise errors.StrategyError(
        f"all_reduce 'hierarchical' needs 2 devices, there is {devices}; use "
        "'auto'"
      )
    if self.bucket_mb and strategy == 'mirrored' and name != 'auto':
      raise errors.StrategyError(
        f'all_reduce {name!r} sends all gradients at once, bucket_mb='
        f"{self.bucket_mb:g} has no effect; use all_reduce='auto', or leave "
        'out bucket_mb'
      )

  def cross_device_ops(self) -> tf.distribute.CrossDeviceOps | None:
    """Returns the argument for MirroredStrategy; None is its default."""
    # No packing: it would concatenate float32 with float64, which fails, and
    # the small gradients are already fused into one tensor.
    if self.all_reduce == 'nccl':
      return tf.distribute.NcclAllReduce(num_packs=0)
    if self.all_reduce == 'hierarchical':
      return tf.distribute.HierarchicalCopyAllReduce(num_packs=0)
    return None

  def communication(self) -> tf.distribute.experimental.CommunicationOptions:
    """Returns the argument for MultiWorkerMirroredStrategy."""
    return tf.distribute.experimental.CommunicationOptions(
      implementation={
        'nccl': tf.distribute.experimental.CommunicationImplementation.NCCL,
        'ring': tf.distribute.experimental.CommunicationImplementation.RING,
      }.get(
        self.all_reduce,
        tf.distribute.experimental.CommunicationImplementation.AUTO,
      )
    )

  def put_on(self, strategy: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """Stores these settings on a strategy, for `of`."""
    strategy._tftrain_reduction = self
    return strategy


def of(strategy: tf.distribute.Strategy) -> Reduction:
  """Returns the all-reduce settings with which a strategy was created."""
  found: Reduction = getattr(strategy, '_tftrain_reduction', Reduction())
  return found


def of_gradients() -> tf.distribute.experimental.CommunicationOptions | None:
  """Returns the options of a gradient all-reduce, in a replica context."""
  bucket = of(tf.distribute.get_strategy()).bucket_mb
  if bucket is None:
    return None
  return tf.distribute.experimental.CommunicationOptions(
    bytes_per_pack=max(int(bucket * 1e6), 1)
  )

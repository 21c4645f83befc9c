"""How replicas add up their gradients: by which algorithm, in which parts."""

import dataclasses

import tensorflow as tf

from tftrain import errors

NAMES = ('auto', 'nccl', 'hierarchical', 'ring')


@dataclasses.dataclass(frozen=True)
class Reduction:
  """What a strategy is to use.

  Attributes:
    all_reduce: `auto` leaves the choice to TensorFlow.
    bucket_mb: Megabytes of gradients that go at once, so that the first are
      on their way while the last are computed; None leaves it to TensorFlow.
      Only a hint: on one device there is nothing to send.

  Raises:
    StrategyError: One is none.
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
    """Raises StrategyError for what a strategy or the machine cannot have."""
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
    """As MirroredStrategy takes it; None is its own choice."""
    # Without packing: it would put float32 and float64 into one tensor, which
    # cannot be, and our small gradients are one tensor already.
    if self.all_reduce == 'nccl':
      return tf.distribute.NcclAllReduce(num_packs=0)
    if self.all_reduce == 'hierarchical':
      return tf.distribute.HierarchicalCopyAllReduce(num_packs=0)
    return None

  def communication(self) -> tf.distribute.experimental.CommunicationOptions:
    """As MultiWorkerMirroredStrategy takes it."""
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
    """Makes a strategy remember it."""
    strategy._tftrain_reduction = self
    return strategy


def of(strategy: tf.distribute.Strategy) -> Reduction:
  """What a strategy was made with."""
  found: Reduction = getattr(strategy, '_tftrain_reduction', Reduction())
  return found


def of_gradients() -> tf.distribute.experimental.CommunicationOptions | None:
  """What an all-reduce of gradients is given, inside a replica."""
  bucket = of(tf.distribute.get_strategy()).bucket_mb
  if bucket is None:
    return None
  return tf.distribute.experimental.CommunicationOptions(
    bytes_per_pack=max(int(bucket * 1e6), 1)
  )

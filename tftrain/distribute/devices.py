"""Device settings of TensorFlow: GPU memory, TF32, determinism, threads."""

import dataclasses
import os
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.distribute import all_reduce as all_reduce_lib

# TensorFlow reads these variables when it starts a GPU.
_MODE, _COUNT = 'TF_GPU_THREAD_MODE', 'TF_GPU_THREAD_COUNT'

# XLA reads this variable when it first compiles. Its autotuning takes the GPU
# kernels that were fastest, by the clock.
_XLA_FLAGS, _WITHOUT_AUTOTUNING = 'XLA_FLAGS', '--xla_gpu_autotune_level=0'


@dataclasses.dataclass(frozen=True)
class Devices:
  """Device settings that differ from TensorFlow's defaults.

  They must be set before TensorFlow starts its devices.

  >>> Devices(memory_growth=True, tf32=False).set_up()

  Attributes:
    memory_growth: Allocates GPU memory as needed instead of all at once.
    tf32: Whether float32 products may use TensorFloat-32; None keeps
      TensorFlow's default, which is on.
    deterministic: Uses only operations that give the same bits each time, and
      turns XLA's autotuning off. Random operations then need a seed.
    gpu_threads: Number of private threads of each GPU.
    inter_op_threads: Number of operations that may run in parallel.
    intra_op_threads: Number of threads that one operation may use.
  """

  memory_growth: bool = False
  tf32: bool | None = None
  deterministic: bool = False
  gpu_threads: int | None = None
  inter_op_threads: int | None = None
  intra_op_threads: int | None = None

  def set_up(self) -> None:
    """Applies all settings.

    Raises:
      StrategyError: If a setting is given and TensorFlow has already started
        its devices.
    """
    asked = [
      f'{field.name}={getattr(self, field.name)}'
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    ]
    if not asked:
      return
    if have_started():
      raise errors.StrategyError(
        f'{", ".join(asked)} comes too late: TensorFlow has started; set it '
        'before anything else of TensorFlow is used'
      )
    if self.gpu_threads is not None:
      os.environ[_MODE] = 'gpu_private'
      os.environ[_COUNT] = str(self.gpu_threads)
    if self.memory_growth:
      for gpu in tf.config.list_physical_devices('GPU'):
        tf.config.experimental.set_memory_growth(gpu, True)
    if self.inter_op_threads is not None:
      tf.config.threading.set_inter_op_parallelism_threads(
        self.inter_op_threads
      )
    if self.intra_op_threads is not None:
      tf.config.threading.set_intra_op_parallelism_threads(
        self.intra_op_threads
      )
    if self.tf32 is not None:
      tf.config.experimental.enable_tensor_float_32_execution(self.tf32)
    if self.deterministic:
      tf.config.experimental.enable_op_determinism()
      given = os.environ.get(_XLA_FLAGS, '')  # the last flag counts
      os.environ[_XLA_FLAGS] = f'{_WITHOUT_AUTOTUNING} {given}'.strip()


def have_started() -> bool:
  """Returns whether TensorFlow has started its devices; starts no device."""
  get = tf.config.threading.get_inter_op_parallelism_threads
  set_to = tf.config.threading.set_inter_op_parallelism_threads
  before = get()
  try:
    set_to(before + 1)  # the same number would be accepted at any time
  except RuntimeError:
    return True
  set_to(before)
  return False


def facts(strategy: tf.distribute.Strategy) -> dict[str, Any]:
  """Returns the settings for run.json that are not TensorFlow's defaults.

  The settings are read from TensorFlow, as a program may set them without
  tftrain.
  """
  gpus = tf.config.list_physical_devices('GPU')
  threading = tf.config.threading
  private = os.environ.get(_MODE) == 'gpu_private'
  reduction = all_reduce_lib.of(strategy)
  found = {
    'memory_growth': any(
      tf.config.experimental.get_memory_growth(gpu) for gpu in gpus
    ),
    'tf32_off': not tf.config.experimental.tensor_float_32_execution_enabled(),
    'deterministic': _is_deterministic(),
    'gpu_threads': int(os.environ.get(_COUNT, 2)) if private else None,
    'inter_op_threads': threading.get_inter_op_parallelism_threads(),
    'intra_op_threads': threading.get_intra_op_parallelism_threads(),
    'all_reduce': reduction.all_reduce.replace('auto', ''),
    'bucket_mb': reduction.bucket_mb,
  }
  return {name: value for name, value in found.items() if value}


def timestamp() -> tf.Tensor:
  """Returns tf.timestamp(), or 0 under op determinism, which has no clocks."""
  return tf.zeros([], tf.float64) if _is_deterministic() else tf.timestamp()


def _is_deterministic() -> bool:
  """Returns whether op determinism is on, by trial: there is no getter."""
  try:
    with tf.init_scope():
      tf.timestamp()
  except tf.errors.FailedPreconditionError:
    return True
  return False

"""Flags of devices; they stand with the others in `--help`."""

from typing import Any

from absl import flags

_MODULE = 'tftrain.launch'

_MEMORY_GROWTH = flags.DEFINE_boolean(
  'memory_growth',
  False,
  "Take a GPU's memory as it is needed, not all at once.",
  module_name=_MODULE,
)
_TF32 = flags.DEFINE_boolean(
  'tf32',
  None,
  'Whether float32 products may be computed in TensorFloat-32.',
  module_name=_MODULE,
)
_DETERMINISTIC = flags.DEFINE_boolean(
  'deterministic',
  False,
  'Use only operations that give the same bits each time.',
  module_name=_MODULE,
)
_GPU_THREADS = flags.DEFINE_integer(
  'gpu_threads',
  None,
  'Threads that each GPU has for itself.',
  lower_bound=1,
  module_name=_MODULE,
)
_INTER_OP_THREADS = flags.DEFINE_integer(
  'inter_op_threads',
  None,
  'Threads between which operations are dealt.',
  lower_bound=1,
  module_name=_MODULE,
)
_INTRA_OP_THREADS = flags.DEFINE_integer(
  'intra_op_threads',
  None,
  'Threads that one operation may use.',
  lower_bound=1,
  module_name=_MODULE,
)
_ALL_REDUCE = flags.DEFINE_string(
  'all_reduce',
  None,
  'How replicas add up gradients: auto, nccl, hierarchical or ring.',
  module_name=_MODULE,
)
_BUCKET_MB = flags.DEFINE_float(
  'bucket_mb',
  None,
  'Megabytes of gradients that go at once.',
  module_name=_MODULE,
)

OF_EXPERIMENT = (_ALL_REDUCE, _BUCKET_MB)
"""Those that set a value of the Experiment."""


def given() -> dict[str, Any]:
  """The fields of `devices.Devices`."""
  return {
    flag.name: flag.value
    for flag in (
      _MEMORY_GROWTH,
      _TF32,
      _DETERMINISTIC,
      _GPU_THREADS,
      _INTER_OP_THREADS,
      _INTRA_OP_THREADS,
    )
  }

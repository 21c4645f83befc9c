"""Device prefetch: copies batches to the GPU ahead of the step."""

import os
from typing import Any

import tensorflow as tf

from tftrain.data import pipeline as pipeline_lib

# Batches on the device: one in use, one on its way.
_AHEAD = 2


def device_for(pipeline: pipeline_lib.Pipeline) -> str | None:
  """Returns the device to copy batches to; None leaves them on the host.

  The device is the only GPU of a run without a strategy; several replicas take
  their rows of a batch on the host. Batches also stay on the host if
  checkpoints keep the iterator, if the pipeline yields cursors, which the host
  reads, or if TFTRAIN_DEVICE_PREFETCH=0.
  """
  if os.environ.get('TFTRAIN_DEVICE_PREFETCH') == '0':
    return None
  gpus = tf.config.list_logical_devices('GPU')
  if len(gpus) != 1 or tf.distribute.has_strategy():
    return None
  if pipeline.keeps_iterator or pipeline.has_cursor:
    return None
  return str(gpus[0].name) if fits(pipeline.element_spec) else None


def fits(element_spec: Any) -> bool:
  """Returns whether a GPU can hold the batches: dense numeric tensors."""
  return all(
    isinstance(leaf, tf.TensorSpec)
    and (leaf.dtype.is_floating or leaf.dtype.is_integer or leaf.dtype.is_bool)
    for leaf in tf.nest.flatten(element_spec)
  )


def iterator(dataset: tf.data.Dataset, device: str) -> Any:
  """Returns an iterator whose batches are copied to `device` in advance.

  Checkpoints cannot save this iterator; the step must determine the batch.
  """
  there = dataset.apply(tf.data.experimental.prefetch_to_device(device, _AHEAD))
  with tf.device(device):
    return iter(there)

"""Batches copied to the accelerator ahead of the step that takes them."""

import os
from typing import Any

import tensorflow as tf

from tftrain.data import pipeline as pipeline_lib

# So many lie there: one in use, one on its way.
_AHEAD = 2


def device_for(pipeline: pipeline_lib.Pipeline) -> str | None:
  """Where its batches are to be copied; None leaves them on the host.

  That is the one GPU of a run without a strategy: of several replicas each
  takes its rows of a batch on the host. An iterator that a checkpoint keeps
  stays there, and so does one that brings cursors, which the host reads. With
  TFTRAIN_DEVICE_PREFETCH=0 all stay there.
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
  """Whether an accelerator can hold it: numbers in dense tensors."""
  return all(
    isinstance(leaf, tf.TensorSpec)
    and (leaf.dtype.is_floating or leaf.dtype.is_integer or leaf.dtype.is_bool)
    for leaf in tf.nest.flatten(element_spec)
  )


def iterator(dataset: tf.data.Dataset, device: str) -> Any:
  """An iterator whose batches are on `device` before they are asked for.

  It cannot be saved: where a batch begins must be known otherwise.
  """
  there = dataset.apply(tf.data.experimental.prefetch_to_device(device, _AHEAD))
  with tf.device(device):
    return iter(there)

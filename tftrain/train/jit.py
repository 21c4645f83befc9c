"""JIT: chooses what XLA compiles, where `Update.jit` is 'auto'.

The rule reads the device, the operations of a step and their FLOPs, never a
clock or the length of the run: every attempt of a run chooses the same.
"""

from collections.abc import Collection
from typing import NamedTuple

import keras
import tensorflow as tf

from tftrain.interop import tracking
from tftrain.task import task as task_lib
from tftrain.train import feed as feed_lib

_CONVOLUTION = (
  keras.layers.Conv1D,
  keras.layers.Conv2D,
  keras.layers.Conv3D,
  keras.layers.DepthwiseConv1D,
  keras.layers.DepthwiseConv2D,
)

# Above this, a step on a CPU should spend its time in matrix products, which
# XLA does not make faster. An estimate: not measured yet.
_MOST_FLOPS = 1e9


class Choice(NamedTuple):
  """What XLA compiles, and why.

  Attributes:
    jit: 'off', 'block' or 'step', as in `Update.jit`.
    why: The reason, for people.
  """

  jit: str
  why: str

  def __str__(self) -> str:
    return f'jit={self.jit}: {self.why}'


def asked(jit: str) -> Choice | None:
  """Returns the Choice that `Update.jit` makes; None for 'auto'."""
  if tf.config.functions_run_eagerly():
    return Choice('off', 'functions run eagerly')
  return None if jit == 'auto' else Choice(jit, f'Update.jit = {jit!r}')


def before_tracing(task: task_lib.Task, feed: feed_lib.Feed) -> Choice:
  """Chooses by what is known before a step is traced."""
  strategy = tf.distribute.get_strategy()
  if strategy.num_replicas_in_sync > 1:
    return Choice('off', 'several replicas')
  if isinstance(strategy, tf.distribute.TPUStrategy):
    return Choice('off', 'XLA compiles everything on a TPU')
  what = feed.not_static()
  if what:
    return Choice('off', f'{what}, no numbers of a static shape')
  if not _has_gpu():
    for name, layer in tracking.owned_by(task).sublayers.items():
      if isinstance(layer, _CONVOLUTION):
        return Choice('off', f'{name} is a convolution on a CPU')
  return Choice('block', 'a small step')


def as_before(jit: str | None, now: Choice) -> Choice | None:
  """Returns the Choice of a resumed run: as it began, if that can be, or None.

  Args:
    jit: What its checkpoint says.
    now: The Choice of a new run.
  """
  possible = jit == 'off' or (jit == 'block' and now.jit == 'block')
  return Choice(str(jit), 'as the run began') if possible else None


def of_step(operations: Collection[str], flops: int) -> Choice:
  """Chooses by the operations of a traced step.

  Args:
    operations: The kinds of operations.
    flops: FLOPs of a step.
  """
  size = f'{flops / 1e6:,.3g} MFLOPs a step'
  if _has_gpu():
    return Choice('block', size)
  for name in sorted(operations):
    if name.startswith(('Conv', 'DepthwiseConv')):
      return Choice('off', f'{name} on a CPU')
  if flops > _MOST_FLOPS:
    return Choice('off', f'{size} on a CPU')
  return Choice('block', f'{size} on a CPU')


def _has_gpu() -> bool:
  return bool(tf.config.list_logical_devices('GPU'))

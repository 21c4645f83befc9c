"""Layer losses: add_loss and regularizers, collected per call of a loss.

Keras keeps what layers add until the next call of the outermost layer. On
replicas, in micro-batches and with several models it is then another call's.
Here a loss gets the terms of the layers that it called, in this call.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import functools
import threading
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tftrain.interop import patching


class Penalties(NamedTuple):
  """The layer losses of one call of a loss; float32 scalars or 0.0.

  Attributes:
    weights: Sum of the weight regularizers; each weight counts once.
    means: Sum of the scalar terms, each a mean over the rows of the call; None
      if there are none.
    sums: Sum of the terms that are not scalars, added up as in Keras; None if
      there are none. Keras before 3.9 adds up activity regularizers too.
  """

  weights: Any = 0.0
  means: Any = None
  sums: Any = None


NONE = Penalties()


class Collector:
  """The layer losses that one call of a loss collects."""

  def __init__(self) -> None:
    self.terms: list[tf.Tensor] = []
    self.summed: dict[int, tf.Tensor] = {}
    self.called: dict[int, Any] = {}
    self.is_suspended = False

  def penalties(self) -> Penalties:
    """Returns the collected terms, added up."""
    regularized = {
      id(variable): variable
      for layer in self.called.values()
      for variable in layer.trainable_weights
      if getattr(variable, 'regularizer', None) is not None
    }
    weights = [v.regularizer(v) for v in regularized.values()]
    means: list[tf.Tensor] = []
    sums: list[tf.Tensor] = []
    for term in self.terms:
      value = tf.cast(tf.convert_to_tensor(term), tf.float32)
      is_mean = value.shape.rank == 0 and id(term) not in self.summed
      (means if is_mean else sums).append(tf.reduce_sum(value))
    return Penalties(
      tf.add_n([tf.cast(w, tf.float32) for w in weights]) if weights else 0.0,
      tf.add_n(means) if means else None,
      tf.add_n(sums) if sums else None,
    )


class _Current(threading.local):
  """The collector of this thread: each replica is traced in its own."""

  collector: Collector | None = None


_current = _Current()


@contextlib.contextmanager
def collected() -> Iterator[Collector]:
  """Collects the layer losses of the calls in this context."""
  before, collector = _current.collector, Collector()
  _current.collector = collector
  try:
    yield collector
  finally:
    _current.collector = before


@contextlib.contextmanager
def suspended() -> Iterator[None]:
  """Leaves layer losses to Keras, which keeps them, in this context."""
  collector = _current.collector
  if collector is None or collector.is_suspended:
    yield
    return
  collector.is_suspended = True
  try:
    yield
  finally:
    collector.is_suspended = False


@contextlib.contextmanager
def left_to_keras() -> Iterator[None]:
  """Collects nothing in this context: Keras's own `compute_loss` adds it."""
  before, _current.collector = _current.collector, None
  try:
    yield
  finally:
    _current.collector = before


@contextlib.contextmanager
def watched(layers: Iterable[Any]) -> Iterator[None]:
  """Sends what these layers add to the collector of the thread that calls."""
  layers = list(layers)
  changes = [(layer, 'add_loss', _sent(layer.add_loss)) for layer in layers]
  regularized = [
    layer for layer in layers if layer.activity_regularizer is not None
  ]
  if regularized and adds_up_activity():
    changes += [
      (layer, 'activity_regularizer', _noted_sum(layer.activity_regularizer))
      for layer in regularized
    ]
  with patching.overridden(changes):
    yield


def noted(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `call`, which also tells the collector which layer is called."""

  @functools.wraps(call)
  def call_and_note(*args: Any, **kwargs: Any) -> Any:
    if _current.collector is not None:
      _current.collector.called[id(layer)] = layer
    return call(*args, **kwargs)

  return call_and_note


def _sent(add_loss: Callable[[Any], None]) -> Callable[[Any], None]:
  def add(loss: Any) -> None:
    collector = _current.collector
    if collector is None or collector.is_suspended:
      add_loss(loss)
    else:
      collector.terms += tf.nest.flatten(loss)

  return add


@functools.cache
def adds_up_activity() -> bool:
  """Returns whether this Keras sums an activity regularizer over the rows.

  Later versions divide it by the number of rows.
  """
  with tf.init_scope():
    layer = keras.layers.Identity(activity_regularizer=tf.reduce_sum)
    layer(tf.ones([2, 1]))
    return float(layer.losses[0]) > 1.5


def _noted_sum(regularizer: Callable[[Any], Any]) -> Callable[[Any], Any]:
  def regularize(output: Any) -> Any:
    loss = regularizer(output)
    if _current.collector is not None:
      _current.collector.summed[id(loss)] = loss
    return loss

  return regularize

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

import tensorflow as tf

from tftrain.interop import patching


class Penalties(NamedTuple):
  """The layer losses of one call of a loss; float32 scalars or 0.0.

  Attributes:
    weights: Sum of the weight regularizers; each weight counts once.
    means: Sum of the scalar terms, each a mean over the rows of the call.
    sums: Sum of the terms that are not scalars, added up as in Keras; None if
      there are none.
  """

  weights: Any = 0.0
  means: Any = None
  sums: Any = None


NONE = Penalties()


class Collector:
  """The layer losses that one call of a loss collects."""

  def __init__(self) -> None:
    self.terms: list[tf.Tensor] = []
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
    terms = [tf.cast(tf.convert_to_tensor(t), tf.float32) for t in self.terms]
    means = [term for term in terms if term.shape.rank == 0]
    sums = [tf.reduce_sum(term) for term in terms if term.shape.rank != 0]
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
  with patching.overridden(
    (layer, 'add_loss', _sent(layer.add_loss)) for layer in layers
  ):
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

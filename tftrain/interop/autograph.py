"""AutoGraph for the user's code, and for none of ours.

Converting a function costs about a quarter of a second at trace time. The
library writes its own control flow with tf.while_loop and tf.cond, and has only
what a user wrote converted: a loss, a train_step, the `call` of a layer.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import inspect
from typing import Any, cast, TypeVar

from absl import logging
import keras
import tensorflow as tf

from tftrain.interop import patching

_Function = TypeVar('_Function', bound=Callable[..., Any])


def converted(function: _Function) -> _Function:
  """The function with data-dependent `if`, `for` and `while` compiled.

  Ours and Keras's are returned as they are, and so is everything while running
  eagerly, so that pdb shows the user's own lines. Of an object that can be
  called, its `__call__` is converted; of a Keras layer nothing, see
  `calls_converted`.
  """
  if tf.executing_eagerly() or isinstance(function, keras.Layer):
    return function
  if isinstance(function, functools.partial):
    inner = converted(function.func)
    return cast(
      _Function, functools.partial(inner, *function.args, **function.keywords)
    )
  target: Any = function
  if not inspect.isroutine(function):
    target = getattr(function, '__call__')  # noqa: B004
  bound = getattr(target, '__self__', None)
  target = getattr(target, '__func__', target)
  if not inspect.isfunction(target) or not _is_users(target):
    return function
  graph = _convert(target)
  return cast(
    _Function, graph if bound is None else functools.partial(graph, bound)
  )


@contextlib.contextmanager
def calls_converted(
  layers: Sequence[Any], wrap: Callable[[Any, Any], Any]
) -> Iterator[None]:
  """Converts `call` of the user's own Keras layers, which Keras does not do.

  Args:
    layers: Keras layers, with those inside them.
    wrap: Takes (layer, call) and returns what to call instead, or `call`.
  """
  changes = []
  for layer in layers:
    call = wrap(layer, converted(layer.call))
    if call != layer.call:
      changes.append((layer, 'call', call))
  with patching.overridden(changes):
    yield


def unconverted(function: _Function) -> _Function:
  """Marks a function of ours that a user's converted code calls."""
  return cast(_Function, tf.autograph.experimental.do_not_convert(function))


def _is_users(function: Any) -> bool:
  module = getattr(function, '__module__', None) or ''
  return module.split('.')[0] not in ('tftrain', 'keras', 'tensorflow')


def origin(path: str, line: int) -> tuple[str, int]:
  """Where a line of a generated file comes from; itself if it is no such."""
  return _ORIGINS.get((path, line), (path, line))


# (file, line) that AutoGraph wrote -> (file, line) of the user's. TensorFlow
# keeps the same on each function it makes, and no way leads there from a file.
_ORIGINS: dict[tuple[str, int], tuple[str, int]] = {}


def _convert(function: Callable[..., Any]) -> Callable[..., Any]:
  try:
    graph: Any = tf.autograph.to_graph(function)
    for made, source in getattr(graph, 'ag_source_map', {}).items():
      here = source.loc.filename, source.loc.lineno
      _ORIGINS[(made.filename, made.lineno)] = here
    return cast(Callable[..., Any], graph)
  except Exception as error:  # no source: an interactive session, say
    logging.info('%s runs without AutoGraph: %s', function, error)
    return function

"""AutoGraph conversion, for user code only.

Converting a function costs about 0.25 s at trace time. The library writes its
own control flow with tf.while_loop and tf.cond, and converts only user code: a
loss, a train_step, the `call` of a layer.
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
  """Returns the function with data-dependent `if`, `for`, `while` compiled.

  Functions of tftrain, Keras and TensorFlow are returned unchanged, and so are
  all functions in eager mode, where pdb then shows the user's lines. A callable
  object has its `__call__` converted; a Keras layer is returned unchanged, see
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
  """Converts `call` of user-defined Keras layers; Keras itself does not.

  Args:
    layers: Keras layers, including nested layers.
    wrap: `wrap(layer, call)` that returns `call` or a replacement.
  """
  changes = []
  for layer in layers:
    call = wrap(layer, converted(layer.call))
    if call != layer.call:
      changes.append((layer, 'call', call))
  with patching.overridden(changes):
    yield


def unconverted(function: _Function) -> _Function:
  """Excludes a library function that converted user code calls."""
  return cast(_Function, tf.autograph.experimental.do_not_convert(function))


def _is_users(function: Any) -> bool:
  module = getattr(function, '__module__', None) or ''
  return module.split('.')[0] not in ('tftrain', 'keras', 'tensorflow')


def origin(path: str, line: int) -> tuple[str, int]:
  """Returns the source (file, line) of a generated line; others unchanged."""
  return _ORIGINS.get((path, line), (path, line))


# (generated file, line) -> (user's file, line). TensorFlow keeps this map on
# each converted function, which cannot be found from the file name.
_ORIGINS: dict[tuple[str, int], tuple[str, int]] = {}


def _convert(function: Callable[..., Any]) -> Callable[..., Any]:
  try:
    graph: Any = tf.autograph.to_graph(function)
    for made, source in getattr(graph, 'ag_source_map', {}).items():
      here = source.loc.filename, source.loc.lineno
      _ORIGINS[(made.filename, made.lineno)] = here
    return cast(Callable[..., Any], graph)
  except Exception as error:  # no source, as in an interactive session
    logging.info('%s runs without AutoGraph: %s', function, error)
    return function

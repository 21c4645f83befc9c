"""AutoGraph for the user's code, and for none of ours.

Converting a function costs about a quarter of a second at trace time. The
library writes its own control flow with tf.while_loop and tf.cond, and has only
what a user wrote converted: a loss, a train_step.
"""

from collections.abc import Callable
import functools
from typing import Any, cast, TypeVar

from absl import logging
import tensorflow as tf

_Function = TypeVar('_Function', bound=Callable[..., Any])


def converted(function: _Function) -> _Function:
  """The function with data-dependent `if`, `for` and `while` compiled.

  Ours and Keras's are returned as they are, and so is everything while running
  eagerly, so that pdb shows the user's own lines.
  """
  module = getattr(function, '__module__', None) or ''
  if tf.executing_eagerly() or module.split('.')[0] in ('tftrain', 'keras'):
    return function
  target = getattr(function, '__func__', function)
  graph = _convert(target)
  if target is not function:
    graph = functools.partial(graph, getattr(function, '__self__'))
  return cast(_Function, graph)


def unconverted(function: _Function) -> _Function:
  """Marks a function of ours that a user's converted code calls."""
  return cast(_Function, tf.autograph.experimental.do_not_convert(function))


@functools.cache
def _convert(function: Callable[..., Any]) -> Callable[..., Any]:
  try:
    return cast(Callable[..., Any], tf.autograph.to_graph(function))
  except Exception as error:  # no source: a lambda, an interactive session
    logging.info('%s runs without AutoGraph: %s', function, error)
    return function

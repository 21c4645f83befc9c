"""Random numbers of layers: their seeds, and how they are drawn."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
from typing import Any

import tensorflow as tf

from tftrain.interop import patching


@contextlib.contextmanager
def distinct(generators: Sequence[Any]) -> Iterator[None]:
  """Makes seed generators draw distinct seeds on each replica in this context.

  Keras keeps the same state on all replicas, so the dropout masks would be
  equal on all. Replica 0 draws the seeds of a single device.

  Args:
    generators: The keras.random.SeedGenerators.
  """

  def for_replica(draw: Callable[..., Any]) -> Callable[..., Any]:
    def next_seed(ordered: bool = True) -> Any:
      seed = draw(ordered)
      context = tf.distribute.get_replica_context()
      if context is None or context.num_replicas_in_sync == 1:
        return seed
      replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
      return seed + tf.stack([replica * _STRIDE, tf.zeros_like(replica)])

    return next_seed

  with patching.overridden(
    (generator, 'next', for_replica(generator.next)) for generator in generators
  ):
    yield


@contextlib.contextmanager
def fixed(
  generators: Sequence[Any], drawn: Sequence[tf.Tensor]
) -> Iterator[None]:
  """Derives all seeds in this context from seeds drawn before.

  A second run in the context draws the same seeds.

  Args:
    generators: The keras.random.SeedGenerators.
    drawn: One seed per generator.
  """
  by_id = {id(g): seed for g, seed in zip(generators, drawn, strict=True)}

  def derived(generator: Any) -> Callable[..., Any]:
    count = 0

    def next_seed(ordered: bool = True) -> Any:
      nonlocal count
      del ordered
      count += 1
      seed = by_id[id(generator)]
      return seed + tf.constant([0, (count - 1) * _STRIDE], seed.dtype)

    return next_seed

  with patching.overridden((g, 'next', derived(g)) for g in generators):
    yield


def fast_in_xla() -> contextlib.AbstractContextManager[None]:
  """Returns the context in which a program of XLA is traced.

  On CPUs it draws with Threefry, where Keras and TensorFlow would choose
  themselves: XLA's Philox takes several times as long there.
  """
  if tf.config.list_logical_devices('GPU'):
    return contextlib.nullcontext()
  uniform = tf.random.stateless_uniform
  normal = tf.random.stateless_normal
  truncated = tf.random.stateless_truncated_normal
  dropout = tf.nn.experimental.stateless_dropout
  return patching.overridden(
    [
      (tf.random, 'stateless_uniform', _drawing(uniform, 'alg')),
      (tf.random, 'stateless_normal', _drawing(normal, 'alg')),
      (tf.random, 'stateless_truncated_normal', _drawing(truncated, 'alg')),
      (tf.nn.experimental, 'stateless_dropout', _drawing(dropout, 'rng_alg')),
    ]
  )


def _drawing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
  return functools.partial(function, **{name: 'threefry'})


# The seeds of replicas and of repeated draws lie this far apart, so that they
# do not coincide.
_STRIDE = 1_000_003

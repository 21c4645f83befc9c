"""Rematerialisation: memory for time, layer by layer (Chen et al. 2016).

What a layer computed is not kept for the backward pass but computed again.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tftrain import errors
from tftrain import seeds


def recomputed(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
  """`call` of `layer` such that its gradient computes it again.

  Dropout inside draws the same mask both times: its seeds are drawn before.
  """
  generators = [
    g for part in layer._flatten_layers() for g in part._seed_generators
  ]

  def call_and_forget(*args: Any, **kwargs: Any) -> Any:
    leaves = tf.nest.flatten((args, kwargs))
    given = [leaf for leaf in leaves if tf.is_tensor(leaf)]
    drawn = [generator.next() for generator in generators]

    def again(*tensors: tf.Tensor) -> Any:
      remaining = list(tensors)
      filled = [
        remaining.pop(0) if tf.is_tensor(leaf) else leaf for leaf in leaves
      ]
      own_args, own_kwargs = tf.nest.pack_sequence_as((args, kwargs), filled)
      with seeds.fixed(generators, drawn):
        return call(*own_args, **own_kwargs)

    return tf.recompute_grad(again)(*given)

  return call_and_forget


def check(names: Sequence[str], layers: Sequence[Any]) -> None:
  """Raises ConfigError for layers that must not run twice."""
  for name, layer in zip(names, layers, strict=True):
    for part in layer._flatten_layers():
      if isinstance(part, keras.layers.BatchNormalization):
        raise errors.ConfigError(
          f'Update.remat: {name} holds batch normalization ({part.name}), '
          'whose statistics would be counted twice; choose other layers'
        )

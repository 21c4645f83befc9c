"""Keras optimizers: what is asked of them, and what is kept from them.

The only file that reaches into one. An update is decided, reduced,
clipped and decayed outside of it; what is left is the rule itself.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from typing import Any

import keras

from tftrain import errors
from tftrain.interop import patching


def check(optimizer: Any, owner: str) -> None:
  """Refuses what Keras does on its own side of a step, where it goes wrong.

  Args:
    optimizer: What is to train the variables of `owner`.
    owner: What the Task is called, for errors.
  """
  name = type(optimizer).__name__
  if optimizer is None:
    raise errors.TaskError(
      f'{owner} has no optimizer; pass one, e.g. keras.optimizers.Adam(1e-3)'
    )
  if not isinstance(optimizer, keras.Optimizer):
    raise errors.TaskError(
      f'{optimizer!r} is no optimizer; give a Keras one, e.g. '
      'keras.optimizers.Adam(1e-3)'
    )
  if optimizer.built:
    raise errors.TaskError(
      f'{name} is built already, by compile(), fit() or another Task; make a '
      'new one for this Task'
    )
  scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
  if scaled or optimizer.loss_scale_factor:
    raise errors.TaskError(
      f'{name} brings a loss scale of its own; take the plain optimizer, and '
      "give tftrain.Update(loss_scale='dynamic')"
    )
  for option, ours in _OURS.items():
    if getattr(optimizer, option, None):
      raise errors.TaskError(
        f'{name}({option}=...) is right on one replica only; leave it out and '
        f'give tftrain.Update({ours})'
      )


_OURS = {
  'clipnorm': 'clip_norm=..., the norm of all gradients',
  'global_clipnorm': 'clip_norm=...',
  'clipvalue': 'clip_value=...',
  'gradient_accumulation_steps': 'accumulate=...',
  'use_ema': 'ema=...',
}


@contextlib.contextmanager
def decay_apart(optimizer: Any, wanted: bool) -> Iterator[float | None]:
  """If wanted, keeps an optimizer from decaying, and yields its weight decay.

  Raises:
    ConfigError: It decays weights in a way of its own.
  """
  decay = optimizer.weight_decay
  if not wanted or not decay:
    yield None
    return
  if type(optimizer)._apply_weight_decay is not _PLAIN_DECAY:
    raise errors.ConfigError(
      f'{type(optimizer).__name__} decays weights in a way of its own, which '
      'Update.no_decay and Update.rates cannot follow; leave them out, or '
      'weight_decay'
    )
  with patching.overridden([(optimizer, 'weight_decay', None)]):
    yield decay


_PLAIN_DECAY = keras.Optimizer._apply_weight_decay


@contextlib.contextmanager
def already_reduced(optimizer: Any) -> Iterator[None]:
  """Keeps a Keras optimizer from adding up over replicas a second time."""
  if not hasattr(optimizer, '_all_reduce_sum_gradients'):
    raise errors.TaskError(
      f'{type(optimizer).__name__} of this Keras version has no '
      '_all_reduce_sum_gradients; install a Keras that setup.py allows'
    )
  with patching.overridden([(optimizer, '_all_reduce_sum_gradients', list)]):
    yield


@contextlib.contextmanager
def own_rates(
  optimizer: Any, factors: Sequence[tuple[Any, float]]
) -> Iterator[None]:
  """Multiplies the learning rate of each variable by a factor of its own."""
  key: Callable[[Any], Any] = optimizer._var_key
  by_key = {key(v): factor for v, factor in factors if factor != 1.0}
  if not by_key:
    yield
    return
  plain = optimizer.update_step

  def update_step(gradient: Any, variable: Any, learning_rate: Any) -> Any:
    factor = by_key.get(key(variable), 1.0)
    return plain(gradient, variable, learning_rate * factor)

  with patching.overridden([(optimizer, 'update_step', update_step)]):
    yield

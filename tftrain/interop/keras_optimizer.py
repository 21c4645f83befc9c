"""Keras optimizers: checks and patches that leave only the update rule.

No other module uses the private API of an optimizer. The step runner decides on
an update, reduces, clips and decays; the optimizer applies its rule.
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
  """Rejects optimizers and options that Keras would apply incorrectly here.

  Args:
    optimizer: The optimizer of the Task.
    owner: The Task's class name, for error messages.

  Raises:
    TaskError: If `optimizer` is not a Keras optimizer, is built already, scales
      the loss, or has an option that Update replaces.
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
  if optimizer.clipnorm:
    raise errors.TaskError(
      f'{name}(clipnorm=...) clips each variable by its own norm; leave it '
      'out, and give tftrain.Update(clip_norm=...), which clips by the norm of '
      'all gradients, or clip_adaptive'
    )
  for option, ours in _OURS.items():
    if getattr(optimizer, option, None):
      raise errors.TaskError(
        f'{name}({option}=...) is right on one replica only; leave it out and '
        f'give tftrain.Update({ours})'
      )


_OURS = {
  'global_clipnorm': 'clip_norm=...',
  'clipvalue': 'clip_value=...',
  'gradient_accumulation_steps': 'accumulate=...',
  'use_ema': 'ema=...',
}


@contextlib.contextmanager
def decay_apart(optimizer: Any, wanted: bool) -> Iterator[float | None]:
  """Disables an optimizer's weight decay and yields the decay, if wanted.

  Yields None, and changes nothing, if not wanted or if there is no decay.

  Raises:
    ConfigError: If the optimizer overrides `_apply_weight_decay`.
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
  """Disables the all-reduce of a Keras optimizer: gradients are summed already.

  Raises:
    TaskError: If this Keras version lacks `_all_reduce_sum_gradients`.
  """
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
  """Multiplies the learning rate of each variable by its factor.

  Args:
    optimizer: A Keras optimizer.
    factors: (variable, factor) pairs.
  """
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

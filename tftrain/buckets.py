"""Many small variables updated as one: a flat copy of them for the optimizer.

Where a model has many small layers, a step spends its time starting small
operations. One concatenated gradient needs one norm, one finite check and one
`optimizer.apply`, then one split back. Element-wise optimizers compute the same
bits on the flat variable as on its parts.
"""

from collections.abc import Sequence
import math
from typing import Any

import keras
import tensorflow as tf

VARIABLE = keras.Variable | tf.Variable

# A variable above this size is better left alone: copying it costs more than
# the dispatch it saves (4 of 1024x1024 in one bucket ran at 0.75x).
_SMALL = 64 * 1024

_ELEMENT_WISE = (
  keras.optimizers.SGD,
  keras.optimizers.Adam,
  keras.optimizers.AdamW,
  keras.optimizers.Nadam,
  keras.optimizers.RMSprop,
  keras.optimizers.Adagrad,
  keras.optimizers.Adadelta,
  keras.optimizers.Adamax,
  keras.optimizers.Lion,
)


class Bucket:
  """One flat variable that stands for several small ones.

  The model's variables stay the truth: `refresh` reads them, `apply` is
  followed by `scatter`, which writes them.
  """

  def __init__(self, variables: Sequence[Any]):
    self.variables = list(variables)
    self.shapes = [tuple(variable.shape) for variable in variables]
    self.sizes = [math.prod(shape) for shape in self.shapes]
    self.flat = tf.Variable(
      tf.zeros([sum(self.sizes)]), trainable=False, name='bucket'
    )

  def refresh(self) -> None:
    """Copies the variables into the flat one."""
    self.flat.assign(self.join([raw(v).read_value() for v in self.variables]))

  def scatter(self) -> None:
    """Copies the flat variable back into the variables."""
    for variable, part in zip(
      self.variables, self.split(self.flat.read_value()), strict=True
    ):
      raw(variable).assign(part, read_value=False)

  def join(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)

  def split(self, flat: tf.Tensor) -> list[tf.Tensor]:
    parts = tf.split(flat, self.sizes)
    return [
      tf.reshape(part, shape)
      for part, shape in zip(parts, self.shapes, strict=True)
    ]


def small_variables(optimizer: Any, variables: Sequence[Any]) -> list[Any]:
  """Those of `variables` that `optimizer` may update as one; often none."""
  if type(optimizer) not in _ELEMENT_WISE or _treats_variables_apart(optimizer):
    return []
  small = [
    variable
    for variable in variables
    if math.prod(variable.shape) <= _SMALL
    and variable.dtype in ('float32', tf.float32)
    and getattr(variable, 'constraint', None) is None
    and not getattr(variable, 'overwrite_with_gradient', False)
  ]
  return small if len(small) > 1 else []


def _treats_variables_apart(optimizer: Any) -> bool:
  """Whether an option of this optimizer depends on which variable it sees."""
  return bool(
    optimizer.clipnorm
    or optimizer.use_ema
    or optimizer.gradient_accumulation_steps
    or getattr(optimizer, '_exclude_from_weight_decay', None)
    or getattr(optimizer, '_exclude_from_weight_decay_pattern', None)
  )


def raw(variable: Any) -> Any:
  """The tf.Variable behind a Keras variable; others are returned as is."""
  return variable.value if isinstance(variable, keras.Variable) else variable


def value(quantity: Any) -> Any:
  """The value of a variable, tensor or float, on the host."""
  quantity = raw(quantity)
  return quantity.numpy() if hasattr(quantity, 'numpy') else quantity

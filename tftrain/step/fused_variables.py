"""Fused variables: many small variables updated as one flat variable.

In a model of many small layers, op dispatch dominates the step. A concatenated
gradient needs one norm, one finite check, one `optimizer.apply` and one split.
Element-wise optimizers compute the same bits on the flat variable as on its
parts.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tftrain.interop import patching
from tftrain.interop import variables as variables_lib
from tftrain.step import parameter_groups
from tftrain.step import update_options

# Most entries of a small variable: copying more costs more time than the saved
# dispatch. Measured by `benchmarks/updates.py --only=buckets`.
SMALL = 12 * 1024

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

  The model's variables are authoritative: `refresh` reads them, and `scatter`
  writes them after an update.

  Args:
    variables: The small variables, all float32.
  """

  def __init__(self, variables: Sequence[Any]):
    self.variables = list(variables)
    self.shapes = [tuple(variable.shape) for variable in variables]
    self.sizes = [math.prod(shape) for shape in self.shapes]
    self.flat = tf.Variable(
      tf.zeros([sum(self.sizes)]), trainable=False, name='bucket'
    )

  def refresh(self) -> None:
    """Copies the variables into the flat variable."""
    self.flat.assign(
      self.join([variables_lib.raw(v).read_value() for v in self.variables])
    )

  def scatter(self) -> None:
    """Copies the flat variable back into the variables; in replica context."""
    for variable, part in zip(
      self.variables, self.split(self.flat.read_value()), strict=True
    ):
      variables_lib.raw(variable).assign(part, read_value=False)

  def join(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)

  def split(self, flat: tf.Tensor) -> list[tf.Tensor]:
    parts = tf.split(flat, self.sizes)
    return [
      tf.reshape(part, shape)
      for part, shape in zip(parts, self.shapes, strict=True)
    ]


class Packing:
  """The order in which the gradients of some variables are applied.

  Buckets come first, then the other variables that receive a gradient.

  Args:
    variables: The variables to differentiate with respect to.
    together: Buckets; all their members are among `variables`.
  """

  def __init__(self, variables: Sequence[Any], together: Sequence[Bucket] = ()):
    self.variables = list(variables)
    self._buckets = list(together)
    inside = {id(v) for bucket in together for v in bucket.variables}
    self._alone = [v for v in variables if id(v) not in inside]
    self.reached: list[Any] = []
    """The variables that got a gradient; known once `pack` has run."""

  def pack(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
    """Packs one gradient or None per variable into application order."""
    pairs = zip(self.variables, gradients, strict=True)
    found = {id(v): g for v, g in pairs if g is not None}
    self.reached = [v for v in self.variables if id(v) in found]
    packed = [
      bucket.join([found[id(v)] for v in bucket.variables])
      for bucket in self._buckets
    ]
    return packed + [found[id(v)] for v in self._alone if id(v) in found]

  def repack(self, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Packs one gradient per variable of `reached`, as `pack` did."""
    found = {id(v): g for v, g in zip(self.reached, values, strict=True)}
    return self.pack([found.get(id(v)) for v in self.variables])

  def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Inverts `pack`: returns one gradient per variable of `reached`."""
    rest, found = list(packed), {}
    for bucket in self._buckets:
      parts = bucket.split(rest.pop(0))
      members = zip(bucket.variables, parts, strict=True)
      found.update({id(v): part for v, part in members})
    alone = self._reached_alone()
    found.update({id(v): g for v, g in zip(alone, rest, strict=True)})
    return [found[id(v)] for v in self.reached]

  def targets(self) -> list[Any]:
    """Returns the variables to update, in the order of the packed gradients."""
    return [bucket.flat for bucket in self._buckets] + self._reached_alone()

  def _reached_alone(self) -> list[Any]:
    reached = {id(v) for v in self.reached}
    return [v for v in self._alone if id(v) in reached]


def is_small(optimizer: Any, variable: Any) -> bool:
  """Returns whether `optimizer` may update `variable` as part of a bucket."""
  return (
    type(optimizer) in _ELEMENT_WISE
    and not _excludes_from_decay(optimizer)
    and math.prod(variable.shape) <= SMALL
    and variable.dtype in ('float32', tf.float32)
    and getattr(variable, 'constraint', None) is None
    # A bucket is written on each replica, and SUM would add up the writes.
    and variables_lib.raw(variable).aggregation != tf.VariableAggregation.SUM
    and not getattr(variable, 'overwrite_with_gradient', False)
  )


def _excludes_from_decay(optimizer: Any) -> bool:
  """Returns whether the optimizer itself exempts variables from decay."""
  return bool(
    getattr(optimizer, '_exclude_from_weight_decay', None)
    or getattr(optimizer, '_exclude_from_weight_decay_pattern', None)
  )


@contextlib.contextmanager
def assignments_seen(
  variables: Sequence[Any], seen: Callable[[], None]
) -> Iterator[None]:
  """Calls `seen` whenever one of `variables` is assigned in this context.

  While a step is traced, this detects assignments in any branch. After one
  outside the optimizer, the flat variables must be refreshed.
  """

  def watching(method: Any) -> Any:
    def assign(*args: Any, **kwargs: Any) -> Any:
      seen()
      return method(*args, **kwargs)

    return assign

  with patching.overridden(
    (variable, name, watching(getattr(variable, name)))
    for variable in map(variables_lib.raw, variables)
    for name in dir(variable)
    if name in _ASSIGNS or name.startswith(_SCATTERS)
  ):
    yield


_ASSIGNS = ('assign', 'assign_add', 'assign_sub', '_strided_slice_assign')
_SCATTERS = ('scatter_', 'batch_scatter_')


class Target(NamedTuple):
  """A variable as an optimizer sees it.

  Attributes:
    variable: A variable of the model, or the flat variable of a bucket.
    group: The parameter group of the variable.
    names: The name of the variable, or of each variable in the bucket.
    bucket: The bucket of a flat variable; None for a variable of the model.
  """

  variable: Any
  group: parameter_groups.Group
  names: tuple[str, ...]
  bucket: Bucket | None = None

  def split(self, value: tf.Tensor) -> dict[str, tf.Tensor]:
    """Splits a value of this target into name -> value of each variable."""
    parts = self.bucket.split(value) if self.bucket else [value]
    return dict(zip(self.names, parts, strict=True))

  def join(self, values: Mapping[str, Any]) -> Any:
    """Inverts `split`; `values` may hold values of other variables, too."""
    parts = [values[name] for name in self.names]
    if self.bucket is None:
      return parts[0]
    return self.bucket.join([tf.convert_to_tensor(part) for part in parts])


def make_targets(
  optimizer: Any,
  trained: Mapping[str, Any],
  options: update_options.Update,
  *,
  bucketed: bool,
) -> list[Target]:
  """Returns the buckets, one per group of small variables, then the rest.

  Args:
    optimizer: The optimizer of the variables.
    trained: Name -> variable.
    options: The options of the training step.
    bucketed: Whether small variables may be updated as one flat variable.
  """
  by_group: dict[parameter_groups.Group, list[str]] = {}
  if bucketed and options.clip_adaptive is None:
    for name, variable in trained.items():
      if is_small(optimizer, variable):
        group = parameter_groups.group_of(options, name)
        by_group.setdefault(group, []).append(name)
  found, inside = [], set()
  for group, names in by_group.items():
    if len(names) > 1:
      inside.update(names)
      bucket = Bucket([trained[name] for name in names])
      found.append(Target(bucket.flat, group, tuple(names), bucket))
  return found + [
    Target(variable, parameter_groups.group_of(options, name), (name,))
    for name, variable in trained.items()
    if name not in inside
  ]

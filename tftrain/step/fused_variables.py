"""Many small variables updated as one: a flat copy of them for the optimizer.

Where a model has many small layers, a step spends its time starting small
operations. One concatenated gradient needs one norm, one finite check and one
`optimizer.apply`, then one split back. Element-wise optimizers compute the same
bits on the flat variable as on its parts.
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
from tftrain.step import update as update_lib

# A variable of more entries is better left alone: copying it costs more than
# the dispatch it saves. Measured by `benchmarks/updates.py --only=buckets`.
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

  The model's variables stay the truth: `refresh` reads them, an update is
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
  """Gradients of some variables in the order in which they are applied.

  Buckets come first, then the other variables that a gradient reaches.

  Args:
    variables: What gradients are taken of.
    together: Buckets, all of whose members are among `variables`.
  """

  def __init__(self, variables: Sequence[Any], together: Sequence[Bucket] = ()):
    self.variables = list(variables)
    self._buckets = list(together)
    inside = {id(v) for bucket in together for v in bucket.variables}
    self._alone = [v for v in variables if id(v) not in inside]
    self.reached: list[Any] = []
    """The variables that got a gradient; known once `pack` has run."""

  def pack(self, gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
    """From one gradient per variable to what is applied."""
    pairs = zip(self.variables, gradients, strict=True)
    found = {id(v): g for v, g in pairs if g is not None}
    self.reached = [v for v in self.variables if id(v) in found]
    packed = [
      bucket.join([found[id(v)] for v in bucket.variables])
      for bucket in self._buckets
    ]
    return packed + [found[id(v)] for v in self._alone if id(v) in found]

  def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The reverse: one gradient per variable of `reached`."""
    rest, found = list(packed), {}
    for bucket in self._buckets:
      parts = bucket.split(rest.pop(0))
      members = zip(bucket.variables, parts, strict=True)
      found.update({id(v): part for v, part in members})
    alone = self._reached_alone()
    found.update({id(v): g for v, g in zip(alone, rest, strict=True)})
    return [found[id(v)] for v in self.reached]

  def targets(self) -> list[Any]:
    """What is updated, in the order of the packed gradients."""
    return [bucket.flat for bucket in self._buckets] + self._reached_alone()

  def _reached_alone(self) -> list[Any]:
    reached = {id(v) for v in self.reached}
    return [v for v in self._alone if id(v) in reached]


def is_small(optimizer: Any, variable: Any) -> bool:
  """Whether `optimizer` may update `variable` together with others."""
  return (
    type(optimizer) in _ELEMENT_WISE
    and not _excludes_from_decay(optimizer)
    and math.prod(variable.shape) <= SMALL
    and variable.dtype in ('float32', tf.float32)
    and getattr(variable, 'constraint', None) is None
    # Written on each replica, it would be added up.
    and variables_lib.raw(variable).aggregation != tf.VariableAggregation.SUM
    and not getattr(variable, 'overwrite_with_gradient', False)
  )


def _excludes_from_decay(optimizer: Any) -> bool:
  """Whether it was told itself which variables not to decay."""
  return bool(
    getattr(optimizer, '_exclude_from_weight_decay', None)
    or getattr(optimizer, '_exclude_from_weight_decay_pattern', None)
  )


@contextlib.contextmanager
def assignments_seen(
  variables: Sequence[Any], seen: Callable[[], None]
) -> Iterator[None]:
  """Calls `seen` whenever one of `variables` is assigned in this context.

  So a step that is being traced knows when somebody other than the optimizer
  writes a weight, in whatever branch: then flat copies have to be refreshed.
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
    variable: A variable of the model, or the flat one of a bucket.
    group: How it is updated.
    names: The name of the variable, or of each in the bucket.
    bucket: What the variable is the flat one of, if it is.
  """

  variable: Any
  group: parameter_groups.Group
  names: tuple[str, ...]
  bucket: Bucket | None = None

  def split(self, value: tf.Tensor) -> dict[str, tf.Tensor]:
    """A value of this target as values of the variables it stands for."""
    parts = self.bucket.split(value) if self.bucket else [value]
    return dict(zip(self.names, parts, strict=True))

  def join(self, values: Mapping[str, Any]) -> Any:
    """The reverse; `values` may hold others."""
    parts = [values[name] for name in self.names]
    if self.bucket is None:
      return parts[0]
    return self.bucket.join([tf.convert_to_tensor(part) for part in parts])


def make_targets(
  optimizer: Any,
  trained: Mapping[str, Any],
  options: update_lib.Update,
  *,
  bucketed: bool,
) -> list[Target]:
  """Buckets, one per group of small variables, then the other variables.

  Args:
    optimizer: What is to update them.
    trained: Name -> variable.
    options: How they are updated.
    bucketed: Whether small variables may be updated as one.
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

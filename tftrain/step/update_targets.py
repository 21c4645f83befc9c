"""What an optimizer updates: single variables, and buckets of small ones."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain.step import fused_variables
from tftrain.step import parameter_groups
from tftrain.step import update as update_lib


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
  bucket: fused_variables.Bucket | None = None

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
      if fused_variables.is_small(optimizer, variable):
        group = parameter_groups.group_of(options, name)
        by_group.setdefault(group, []).append(name)
  found, inside = [], set()
  for group, names in by_group.items():
    if len(names) > 1:
      inside.update(names)
      bucket = fused_variables.Bucket([trained[name] for name in names])
      found.append(Target(bucket.flat, group, tuple(names), bucket))
  return found + [
    Target(variable, parameter_groups.group_of(options, name), (name,))
    for name, variable in trained.items()
    if name not in inside
  ]

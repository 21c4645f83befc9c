"""Structure diff: compares the values of a checkpoint and of a model."""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

Spec = tuple[str, tuple[int, ...]]
"""The dtype and shape."""


def specs(values: Mapping[str, Any]) -> dict[str, Spec]:
  """Returns the specs of tensors, arrays, or the values of a manifest."""
  found = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      found[name] = (value['dtype'], tuple(value['shape']))
    else:
      dtype = getattr(value.dtype, 'name', str(value.dtype))
      found[name] = (dtype, tuple(value.shape))
  return found


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The comparison of two sets of names, each with its dtype and shape.

  Attributes:
    saved: Specs of the checkpoint, by name.
    ours: Specs of the model, by name.
  """

  saved: Mapping[str, Spec]
  ours: Mapping[str, Spec]

  @property
  def restored(self) -> list[str]:
    return [n for n, spec in self.ours.items() if self.saved.get(n) == spec]

  @property
  def missing(self) -> list[str]:
    """The names that the model has and the checkpoint lacks."""
    return [name for name in self.ours if name not in self.saved]

  @property
  def unexpected(self) -> list[str]:
    """The names that the checkpoint has and the model lacks."""
    return [name for name in self.saved if name not in self.ours]

  @property
  def differing(self) -> list[str]:
    """The common names that differ in dtype or shape."""
    both = [name for name in self.ours if name in self.saved]
    return [name for name in both if self.saved[name] != self.ours[name]]

  def differences(self) -> list[str]:
    found = [
      f'{name}: checkpoint {_spec_text(self.saved[name])} vs model '
      f'{_spec_text(self.ours[name])}'
      for name in self.differing
    ]
    found += [f'missing {name}' for name in self.missing]
    return found + [f'unexpected {name}' for name in self.unexpected]

  def hint(self) -> str:
    """Returns a guess at a renaming that explains the differences, or ''."""
    pairs = self._pairs()
    changes = {_change(*pair) for pair in pairs}
    if not pairs or len(changes) != 1 or len(pairs) < len(self.missing):
      return ''
    ((old, new),) = changes
    return f'was {old!r} renamed to {new!r}?'

  def _pairs(self) -> list[tuple[str, str]]:
    """Returns (unexpected, missing) pairs of equal specs, in order."""
    left = list(self.unexpected)
    pairs = []
    for name in self.missing:
      alike = [old for old in left if self.saved[old] == self.ours[name]]
      if alike:
        # The longest common suffix: kernel with kernel.
        best = max(alike, key=lambda old: len(_common_end(old, name)))
        left.remove(best)
        pairs.append((best, name))
    return pairs


def shortened(differences: list[str], limit: int = 3) -> str:
  more = len(differences) - limit
  return '; '.join(differences[:limit]) + (f'; and {more} more' * (more > 0))


def _spec_text(spec: Spec) -> str:
  return f'{spec[0]}{list(spec[1])}'


def _common_end(one: str, other: str) -> str:
  return os.path.commonprefix([one[::-1], other[::-1]])[::-1]


def _change(old: str, new: str) -> tuple[str, str]:
  """Returns the (old, new) segments by which two names differ."""
  one, other = old.split('/'), new.split('/')
  while one and other and one[0] == other[0]:
    one, other = one[1:], other[1:]
  while one and other and one[-1] == other[-1]:
    one, other = one[:-1], other[:-1]
  return '/'.join(one), '/'.join(other)

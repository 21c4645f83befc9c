"""Patching: temporarily overrides attributes of third-party objects."""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
from typing import Any

_ABSENT = object()


@contextlib.contextmanager
def overridden(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
  """Sets attributes on objects in this context, not on their classes.

  The previous values are restored at the end, also after an error.

  Args:
    changes: (object, attribute, value) triples.
  """
  before = []
  try:
    for owner, name, value in changes:
      before.append((owner, name, vars(owner).get(name, _ABSENT)))
      object.__setattr__(owner, name, value)  # bypasses Keras and TF tracking
    yield
  finally:
    for owner, name, value in reversed(before):
      if value is _ABSENT:
        object.__delattr__(owner, name)
      else:
        object.__setattr__(owner, name, value)

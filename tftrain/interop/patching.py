"""Attributes of other people's objects, changed for a while and put back."""

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
from typing import Any

_ABSENT = object()


@contextlib.contextmanager
def overridden(changes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
  """Sets (object, attribute, value), on the object itself, not on its class.

  What was there comes back at the end, whatever happens meanwhile.
  """
  before = []
  try:
    for owner, name, value in changes:
      before.append((owner, name, vars(owner).get(name, _ABSENT)))
      object.__setattr__(owner, name, value)  # Keras and TensorFlow track
    yield
  finally:
    for owner, name, value in reversed(before):
      if value is _ABSENT:
        object.__delattr__(owner, name)
      else:
        object.__setattr__(owner, name, value)

"""Best-effort I/O: logs a warning instead of failing the run."""

from collections.abc import Iterator
import contextlib
import math
import time

from absl import logging

from tftrain import errors

_SECONDS = 60


class BestEffort:
  """A context manager that logs errors, at most once a minute.

  Args:
    what: Subject of the warning, such as 'Summaries below /run'.
    kinds: Exception types to log; other exceptions propagate.
  """

  def __init__(self, what: str, kinds: tuple[type[Exception], ...]):
    self._what = what
    self._kinds = kinds
    self._warned = -math.inf

  @contextlib.contextmanager
  def __call__(self) -> Iterator[None]:
    try:
      yield
    except self._kinds as error:
      if time.monotonic() - self._warned > _SECONDS:
        self._warned = time.monotonic()
        logging.warning(
          '%s cannot be written (%s); training goes on without them.',
          self._what,
          errors.one_line(error),
        )

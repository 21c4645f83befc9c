"""BestEffort: what is not worth a run is warned of, and the run goes on."""

from collections.abc import Iterator
import contextlib
import math
import time

from absl import logging

from tftrain import errors

_SECONDS = 60


class BestEffort:
  """A context whose errors become warnings, one a minute.

  Args:
    what: What does not happen then, such as 'Summaries below /run'.
    kinds: Which errors; others end the run.
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

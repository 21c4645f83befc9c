"""Memory use of this process and its devices, with a warning on growth."""

import collections
import gc
import os
import resource
import sys
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf

_READINGS = 10  # consecutive readings that must all grow
_RATIO = 1.2
_LEAST = 256.0  # MB


def resident() -> float:
  """Returns the resident set size of this process, in bytes."""
  try:
    with open('/proc/self/statm', 'rb') as file:
      return float(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except (OSError, ValueError, IndexError):
    return most_resident()


def most_resident() -> float:
  """Returns the peak resident set size of this process, in bytes."""
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return most if sys.platform == 'darwin' else most * 1024.0


def readings() -> dict[str, float]:
  """Returns name -> megabytes of the process and its fullest accelerator."""
  found = {'memory/process_mb': resident() / 1e6}
  for device in tf.config.list_logical_devices():
    if device.device_type == 'CPU':
      continue
    for kind, held in tf.config.experimental.get_memory_info(
      device.name
    ).items():
      name = 'device' if kind == 'current' else f'device_{kind}'
      name = f'memory/{name}_mb'
      found[name] = max(found.get(name, 0.0), held / 1e6)
  return found


class Growth:
  """A detector of steady memory growth; it warns once, with a likely cause."""

  def __init__(self) -> None:
    self._held: collections.deque[float] = collections.deque(maxlen=_READINGS)
    self._traces = 0
    self._kept: tuple[int, float] | None = None
    self._suspected = 0.0
    self._warned = False

  def look(self, step: int, held: float, traces: int) -> None:
    """Adds a reading, and warns if memory keeps growing.

    Args:
      step: Step of the reading.
      held: Memory of the process, in megabytes.
      traces: Number of times that the loop has been traced.
    """
    if self._warned:
      return
    self._held.append(held)
    first = self._held[0]
    grows = len(self._held) == _READINGS and all(
      b > a for a, b in zip(self._held, list(self._held)[1:], strict=False)
    )
    if not grows or held < first + _LEAST / 2:
      self._kept = None
      return
    if self._kept is None:  # counting is slow: on suspicion only
      self._kept = _kept_by_python()
      self._suspected, self._traces = held, traces
    elif held > max(first * _RATIO, first + _LEAST):
      self._warned = True
      logging.warning(
        'Step %d: memory has grown at each of the last %d reports, by %.0f MB '
        'to %.0f MB. %s',
        step,
        _READINGS,
        held - first,
        held,
        self._cause(traces),
      )

  def _cause(self, traces: int) -> str:
    if traces > self._traces:
      return (
        'The loop was compiled again meanwhile; see the warning about its '
        'traces, or set max_traces.'
      )
    assert self._kept is not None
    count, size = _kept_by_python()
    count, size = count - self._kept[0], size - self._kept[1]
    if size / 1e6 > (self._held[-1] - self._suspected) / 2:
      return (
        f'Python holds {count:,} more tensors and arrays, of '
        f'{size / 1e6:.0f} MB: does an Action, a metric or the data '
        'keep what it is given? Keep float(value) instead.'
      )
    return (
      'It is no tensor that Python holds: a shuffle buffer or cache that fills '
      'ends by itself (--mode=inspect_data says how large they are).'
    )


def _kept_by_python() -> tuple[int, float]:
  """Returns the number of live tensors and arrays, and their bytes."""
  kinds = (np.ndarray, bytes, type(tf.constant(0)))
  alive = {
    id(thing): thing
    for container in gc.get_objects()
    for thing in gc.get_referents(container)
    if type(thing) in kinds
  }
  return len(alive), float(sum(map(_byte_size, alive.values())))


def _byte_size(thing: Any) -> int:
  if isinstance(thing, bytes):
    return len(thing)
  if isinstance(thing, np.ndarray):
    return thing.nbytes if thing.base is None else 0
  return int(thing.dtype.size) * int(thing.shape.num_elements())

"""Resource slots: assigns CPU cores and GPUs to concurrent processes."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib

from tftrain import errors


@dataclasses.dataclass(frozen=True)
class Slot:
  """The CPU cores and GPUs of one trial at a time.

  Attributes:
    cores: CPU cores that the trial may use.
    gpus: GPUs that are visible to the trial; None leaves the environment
      unchanged.
  """

  cores: frozenset[int]
  gpus: tuple[str, ...] | None = None

  def environment(self) -> dict[str, str]:
    """Returns the environment variables of the trial's process."""
    return (
      {} if self.gpus is None else {'CUDA_VISIBLE_DEVICES': ','.join(self.gpus)}
    )


def make(
  parallel: int, gpus_per_trial: int | None, gpus: Sequence[str] | None = None
) -> list[Slot]:
  """Returns `parallel` slots that divide the cores and GPUs of this machine.

  Args:
    parallel: Number of slots.
    gpus_per_trial: GPUs in each slot; None means one, or zero without GPUs.
    gpus: GPUs to divide; None detects them.

  Raises:
    ConfigError: If `parallel` is less than 1, `gpus_per_trial` is negative, or
      there are not enough GPUs.
  """
  if parallel < 1:
    raise errors.ConfigError(f'--parallel is {parallel}; give at least 1')
  there = find_gpus() if gpus is None else list(gpus)
  each = gpus_per_trial if gpus_per_trial is not None else int(bool(there))
  if each < 0 or each * parallel > len(there):
    raise errors.ConfigError(
      f'{parallel} trials at a time with {each} GPUs each, but there are '
      f'{len(there)}; lower --parallel or --gpus_per_trial'
    )
  cores = _cores()
  return [
    Slot(
      frozenset(cores[i::parallel] or [cores[i % len(cores)]]),
      tuple(there[i * each : (i + 1) * each]) if there else None,
    )
    for i in range(parallel)
  ]


def pin(pid: int, slot: Slot) -> None:
  """Pins a process, and all its later threads, to the cores of a slot."""
  if hasattr(os, 'sched_setaffinity'):
    try:
      os.sched_setaffinity(pid, slot.cores)
    except ProcessLookupError:
      pass  # it has already ended; its parent notices


def _cores() -> list[int]:
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def find_gpus() -> list[str]:
  """Returns the GPUs that this process may use."""
  given = os.environ.get('CUDA_VISIBLE_DEVICES')
  if given is not None:
    return [name for name in given.split(',') if name.strip()]
  devices = list(pathlib.Path('/dev').glob('nvidia[0-9]*'))
  return [str(number) for number in range(len(devices))]

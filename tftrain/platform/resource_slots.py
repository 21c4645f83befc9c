"""What trials that run at the same time have for themselves: cores and GPUs."""

from collections.abc import Sequence
import dataclasses
import os
import pathlib

from tftrain import errors


@dataclasses.dataclass(frozen=True)
class Slot:
  """The place of one trial at a time.

  Attributes:
    cores: The CPU cores that it may use.
    gpus: The GPUs that it sees; None leaves the environment as it is.
  """

  cores: frozenset[int]
  gpus: tuple[str, ...] | None = None

  def environment(self) -> dict[str, str]:
    """What the trial's process gets."""
    return (
      {} if self.gpus is None else {'CUDA_VISIBLE_DEVICES': ','.join(self.gpus)}
    )


def make(
  parallel: int, gpus_per_trial: int | None, gpus: Sequence[str] | None = None
) -> list[Slot]:
  """So many slots, among which cores and GPUs are dealt out.

  Args:
    parallel: How many.
    gpus_per_trial: How many each gets; None means one if there are any.
    gpus: Which there are; None looks.

  Raises:
    ConfigError: There are not enough.
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
  """Keeps a process, and all threads that it will have, on its cores."""
  if hasattr(os, 'sched_setaffinity'):
    try:
      os.sched_setaffinity(pid, slot.cores)
    except ProcessLookupError:
      pass  # it has ended already, which is seen elsewhere


def _cores() -> list[int]:
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def find_gpus() -> list[str]:
  """The GPUs that this process may use."""
  given = os.environ.get('CUDA_VISIBLE_DEVICES')
  if given is not None:
    return [name for name in given.split(',') if name.strip()]
  devices = list(pathlib.Path('/dev').glob('nvidia[0-9]*'))
  return [str(number) for number in range(len(devices))]

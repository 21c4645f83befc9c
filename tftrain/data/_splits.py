"""Splits of a source: training and holdout, and the shard of each host."""

from typing import Any

from tftrain import errors
from tftrain.data.sources import in_memory
from tftrain.data.sources import source as source_lib


def part_of(
  source: Any,
  holdout: float | None,
  subset: str,
  shard: tuple[int, int],
  cache: bool,
) -> source_lib.Source:
  """Returns the part of a source that one host reads.

  Args:
    source: Source of the examples.
    holdout: Share of the examples to hold out; None holds out nothing.
    subset: `train` or `holdout`.
    shard: (host, hosts).
    cache: True loads the part into memory.

  Raises:
    ConfigError: If the arguments exclude each other or are out of range.
    InputError: If `source` is not a Source.
  """
  if not isinstance(source, source_lib.Source):
    raise errors.InputError(
      f'Examples takes a source such as TFRecords or InMemory, got '
      f'{type(source).__name__}; arrays go into Arrays, a dataset of batches '
      'into DatasetPipeline'
    )
  if subset not in ('train', 'holdout'):
    raise errors.ConfigError(
      f"Examples.subset = {subset!r}; give 'train' or 'holdout'"
    )
  if holdout is None and subset == 'holdout':
    raise errors.ConfigError(
      "Examples.subset = 'holdout' needs holdout, the share that is held out"
    )
  if cache and source.endless:
    raise errors.ConfigError(
      'Examples.cache: a Mixture has no end; leave cache out'
    )
  if holdout is not None:
    if not 0 < holdout < 1:
      raise errors.ConfigError(
        f'Examples.holdout = {holdout}; give a share between 0 and 1'
      )
    source = source.split(holdout, subset)
  if shard[1] > 1:
    source = source.shard(*shard)
  return in_memory.InMemory(in_memory.read_all(source)) if cache else source


def share_of(batch_size: int, shard: tuple[int, int]) -> int:
  """Returns the rows of a global batch that one host makes.

  Raises:
    ConfigError: If the host index of `shard` is out of range.
    InputError: If `batch_size` is not divisible by the number of hosts.
  """
  index, hosts = shard
  if not 0 <= index < hosts:
    raise errors.ConfigError(
      f'Examples.shard = {shard}; give (host, hosts), counted from 0'
    )
  if batch_size % hosts:
    raise errors.InputError(
      f'batch_size {batch_size} does not divide by {hosts} hosts'
    )
  return batch_size // hosts

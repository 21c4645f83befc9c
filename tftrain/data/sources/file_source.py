"""Sources of files that are read sequentially."""

import abc
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import glob
import os
import pathlib
import time
from typing import Any, NamedTuple

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import source as source_lib
from tftrain.distribute import row_sharding

# Files read at a time, and consecutive records of each. Both are part of the
# order of examples.
_CYCLE, _BLOCK = 16, 16

Paths = str | pathlib.Path | Sequence[str | pathlib.Path]


class File(NamedTuple):
  """One file of a source.

  Attributes:
    path: Path of the file.
    records: Number of records to read.
    byte: Offset of the first record.
  """

  path: str
  records: int
  byte: int = 0


class Stream(source_lib.Source):
  """Records of files, shuffled file by file and within windows.

  Subclasses set `element_spec`, and implement `read` and `decode`.

  Args:
    files: Files with the records.
  """

  def __init__(self, files: Sequence[File]):
    self.files = tuple(files)
    self._records_of: tuple[int, int] | None = None  # host, hosts
    self._held_out: tuple[float, str] | None = None
    self._count: int | None = sum(file.records for file in files)
    size = sum(tf.io.gfile.stat(p).length for p in {f.path for f in files})
    self.record_bytes = size / max(1, self._count)

  @abc.abstractmethod
  def read(self, number: tf.Tensor) -> tf.data.Dataset:
    """Returns the records of `files[number]`, strings `[]`."""

  @abc.abstractmethod
  def decode(self, records: tf.Tensor) -> Any:
    """Decodes records, strings `[n]`, to examples, `[n, ...]`, in a graph."""

  @property
  def num_examples(self) -> int:  # type: ignore[override]
    if self._count is None:
      logging.info('Counting what is left of %s.', self._what())
      whole = shuffle_lib.Order()
      sizes = self._epoch(whole, tf.constant(0, tf.int64), 0).map(
        lambda records: tf.size(records, tf.int64)
      )
      sizes = shuffle_lib.without_autotuning(sizes)
      self._count = int(sizes.reduce(tf.constant(0, tf.int64), tf.add))
      if not self._count:
        raise errors.InputError(
          f'none of the records of {self._what()} are left; hold out another '
          'share, or take fewer hosts'
        )
    return self._count

  def chunks(
    self, size: int, order: shuffle_lib.Order, start: int = 0
  ) -> tf.data.Dataset:
    return self._mapped(size, order, start, self.decode)

  def own(
    self, size: int, order: shuffle_lib.Order, start: int, cut: row_sharding.Cut
  ) -> tf.data.Dataset | None:
    if type(self).chunks is not Stream.chunks:
      return None
    return self._mapped(
      size,
      order,
      start,
      lambda text: shuffle_lib.apply_to_rows(text, self.decode, cut),
    )

  def _mapped(
    self,
    size: int,
    order: shuffle_lib.Order,
    start: int,
    function: Callable[[tf.Tensor], Any],
  ) -> tf.data.Dataset:
    """Applies `function` to the records of each chunk, strings `[n]`."""
    first, offset = divmod(start, self.num_examples) if start else (0, 0)
    last = source_lib.FOR_EVER if order.epochs is None else order.epochs

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
      skipped = tf.where(number == first, tf.constant(offset, tf.int64), 0)
      return self._epoch(order, number, skipped)

    records = tf.data.Dataset.range(first, last).flat_map(epoch)
    if order.seed is not None:
      records = records.prefetch(1)  # reads a window while another is used
    endless = order.epochs is None
    return records.rebatch(size, drop_remainder=endless).map(
      function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )

  def fingerprint(self) -> Mapping[str, Any]:
    return {
      'kind': type(self).__name__,
      'files': [[os.path.basename(f.path), f.records] for f in self.files],
      'part': [self._records_of, self._held_out],
    }

  def shard(self, index: int, count: int) -> 'Stream':
    part = copy.copy(self)
    if len(self.files) >= count:
      part.files = self.files[index::count]
      logging.info(
        'Host %d of %d reads %d of %d files.',
        index,
        count,
        len(part.files),
        len(self.files),
      )
      if part._held_out is None:
        part._count = sum(file.records for file in part.files)
        return part
    else:
      part._records_of = (index, count)
      logging.info(
        '%d files for %d hosts: each reads all of them and keeps every %dth '
        'record; write %d files or more to spare that.',
        len(self.files),
        count,
        count,
        count,
      )
    part._count = None
    return part

  def split(self, holdout: float, subset: str) -> 'Stream':
    part = copy.copy(self)
    part._held_out = (holdout, subset)
    part._count = None
    return part

  def path(self, number: tf.Tensor) -> tf.Tensor:
    return tf.gather([file.path for file in self.files], number)

  def _what(self) -> str:
    more = f' and {len(self.files) - 1} more' if len(self.files) > 1 else ''
    return f'{self.files[0].path}{more}'

  def _epoch(
    self, order: shuffle_lib.Order, epoch: tf.Tensor, skipped: Any
  ) -> tf.data.Dataset:
    """Returns an epoch in chunks, without its first `skipped` records."""
    files = tf.range(len(self.files), dtype=tf.int64)
    cycle = 1
    if order.seed is not None:
      keys = tf.stack(
        [*shuffle_lib.words(order.seed), tf.cast(epoch, tf.int32)]
      )
      files = shuffle_lib.permuted(files, keys, len(self.files))
      cycle = min(_CYCLE, len(self.files))
    windows = self._records(files, cycle).rebatch(order.window)
    return shuffle_lib.shuffled(windows, order, epoch, skipped)

  def _records(self, files: tf.Tensor, cycle: int) -> tf.data.Dataset:
    """Returns the records of all files, in interleaved blocks of `_BLOCK`."""
    # Blocks, because single records would take twice the time.
    blocks = tf.data.Dataset.from_tensor_slices(files).interleave(
      lambda number: self.read(number).batch(_BLOCK),
      cycle_length=cycle,
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    )
    if self._held_out is not None:
      share, subset = self._held_out

      def keep(texts: tf.Tensor) -> tf.Tensor:
        out = shuffle_lib.text_held_out(texts, share)
        return tf.boolean_mask(texts, out if subset == 'holdout' else ~out)

      blocks = blocks.map(keep).filter(lambda texts: tf.size(texts) > 0)
    if self._records_of is not None:
      index, count = self._records_of
      blocks = blocks.unbatch().shard(count, index).batch(_BLOCK)
    return blocks


# Time limit of the search for a bad record, in seconds.
_PATIENCE = 60.0


def with_time_limit(items: Iterable[Any]) -> Iterator[Any]:
  """Yields the items, for a minute at most."""
  end = time.monotonic() + _PATIENCE
  for item in items:
    if time.monotonic() > end:
      logging.warning('No bad record was found in %d seconds.', _PATIENCE)
      return
    yield item


def find(paths: Paths) -> list[str]:
  """Returns the files that a glob, a path, or a list of them matches, in order.

  Raises:
    InputError: If a pattern matches no file, or a match is a directory or an
      empty file.
  """
  given = [paths] if isinstance(paths, str | pathlib.Path) else list(paths)
  if not given:
    raise errors.InputError('the list of files is empty; give paths or a glob')
  found: list[str] = []
  for pattern in map(str, given):
    matches = sorted(tf.io.gfile.glob(pattern)) or [
      path for path in [pattern] if tf.io.gfile.exists(path)
    ]
    if not matches:
      raise errors.InputError(_no_match(pattern))
    found += matches
  for path in found:
    if tf.io.gfile.isdir(path):
      raise errors.InputError(f'{path} is a directory; give {path}/* for files')
    if not tf.io.gfile.stat(path).length:
      raise errors.InputError(f'{path}: file is empty; write or remove it')
  return found


def _no_match(pattern: str) -> str:
  folder = os.path.dirname(pattern) or '.'
  text = f'no file matches {pattern}'
  if glob.has_magic(folder):
    return text
  if not tf.io.gfile.isdir(folder):
    return f'{text}: there is no directory {folder}'
  names = sorted(tf.io.gfile.listdir(folder))
  if not names:
    return f'{text}: {folder} is empty'
  return f'{text}: {folder} holds {len(names)} files, such as {names[0]}'

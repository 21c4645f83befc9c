"""TFRecord file format: counts, checks and repairs records.

A record is its length (8 bytes, little endian), a checksum of the length (4
bytes), the data, and a checksum of the data (4 bytes). Both checksums are
masked CRC-32C.
"""

import mmap
import os
import struct
from typing import Any, NamedTuple
import zlib

import tensorflow as tf

from tftrain import errors

_HEADER, _FOOTER = 12, 4
_MANY = 1024
_CUT_OFF = 'the file ends inside of it'


class Damage(NamedTuple):
  """A record that cannot be read.

  Attributes:
    record: Number of the record, from 0.
    byte: Offset of the record; None if the file is compressed or the offset is
      unknown.
    what: Description of the damage.
    tail: True if all records after this one are unreadable too.
  """

  record: int
  byte: int | None
  what: str
  tail: bool

  def __str__(self) -> str:
    where = '' if self.byte is None else f' (byte {self.byte})'
    return f'record {self.record}{where}: {self.what}'


class Piece(NamedTuple):
  """A run of readable records: `records` of them, from offset `byte` on."""

  byte: int
  records: int


class Content(NamedTuple):
  """Contents of a file: its intact pieces and its damages."""

  compression: str
  pieces: tuple[Piece, ...]
  damages: tuple[Damage, ...]

  @property
  def records(self) -> int:
    return sum(piece.records for piece in self.pieces)


def compression_of(path: str) -> str:
  """Returns '', 'GZIP' or 'ZLIB', from the first bytes of the file.

  Raises:
    InputError: If the file is not a TFRecord file.
  """
  with tf.io.gfile.GFile(path, 'rb') as file:
    begin = file.read(_HEADER)
  if _is_header(begin):
    return ''
  if begin[:2] == b'\x1f\x8b':
    return 'GZIP'
  if begin[:1] == b'\x78' and int.from_bytes(begin[:2], 'big') % 31 == 0:
    return 'ZLIB'
  raise errors.InputError(
    f'{path} is no TFRecord file, or is damaged at its first byte: what it '
    'begins with is no header of a record; remove it, or write it again'
  )


def count(path: str) -> Content:
  """Counts records by their lengths, without reading their data.

  Detects a file that ends inside a header, which TensorFlow ignores silently.
  """
  if compression_of(path) or not os.path.exists(path):
    return check(path)
  records, end = _count_records(path, 0)
  size = os.path.getsize(path)
  if end == size:
    return Content('', (Piece(0, records),), ())
  if end > size:  # the last record extends beyond the end
    records -= 1
  damage = Damage(records, None, _CUT_OFF, tail=True)
  return Content('', (Piece(0, records),), (damage,))


def check(path: str) -> Content:
  """Reads a whole file and verifies all its checksums."""
  compression = compression_of(path)
  if compression:
    records, broken = _readable(tf.data.TFRecordDataset(path, compression))
    what = f'the {compression} stream breaks off'
    broken = broken or _is_unfinished(path, compression)
    damage = Damage(records, None, what, tail=True)
    return Content(
      compression, (Piece(0, records),), (damage,) if broken else ()
    )
  pieces, damages = [], []
  byte, record, size = 0, 0, tf.io.gfile.stat(path).length
  while byte < size:
    readable, _ = _readable(records_at(path, byte))
    if readable:
      pieces.append(Piece(byte, readable))
    _, byte = _count_records(path, byte, readable)
    record += readable
    if byte >= size:
      break
    damages.append(_damage_at(path, record, byte))
    if damages[-1].tail:
      break
    _, byte = _count_records(path, byte, 1)
    record += 1
  return Content('', tuple(pieces), tuple(damages))


def records_at(path: Any, byte: Any) -> tf.data.Dataset:
  """Returns records of an uncompressed file from `byte` on, strings `[]`."""
  spec = tf.TensorSpec([], tf.string)

  def read(path: tf.Tensor, byte: tf.Tensor) -> tf.data.Dataset:
    found = tf.raw_ops.TFRecordDatasetV2(
      filenames=tf.reshape(path, [1]),
      compression_type='',
      buffer_size=1 << 18,
      byte_offsets=tf.reshape(byte, [1]),
      metadata='',
    )
    return tf.data.experimental.from_variant(found, spec)

  # In a function, because TensorFlow 2.21 cannot serialize this op into the
  # graph of another dataset.
  where = (path, tf.cast(byte, tf.int64))
  return tf.data.Dataset.from_tensors(where).flat_map(read)


def repair(path: str, repaired: str) -> Content:
  """Copies the intact records of `path` to `repaired`; returns its contents."""
  content = check(path)
  if content.compression:
    whole = tf.data.TFRecordDataset(path, content.compression)
    datasets = [whole.take(content.records)]
  else:
    datasets = [
      records_at(path, piece.byte).take(piece.records)
      for piece in content.pieces
    ]
  with tf.io.TFRecordWriter(repaired, content.compression or None) as writer:
    for dataset in datasets:
      for record in dataset.as_numpy_iterator():
        writer.write(record)
  return content


def _count_records(
  path: str, begin: int, most: int | None = None
) -> tuple[int, int]:
  """Returns the number of records from `begin` on, and the end of the last."""
  length = struct.Struct('<Q').unpack_from
  records, byte = 0, begin
  with open(path, 'rb') as file:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      last = len(data) - _HEADER
      while byte <= last and (most is None or records < most):
        byte += length(data, byte)[0] + _HEADER + _FOOTER
        records += 1
  return records, byte


def _readable(dataset: tf.data.Dataset) -> tuple[int, bool]:
  """Returns the number of readable records, and True if the next is damaged."""
  records = 0
  try:
    for batch in dataset.batch(_MANY):
      records += int(tf.size(batch))
    return records, False
  except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
    pass  # the good records of the last batch are counted one by one
  try:
    for _ in dataset.skip(records):
      records += 1
  except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
    return records, True
  return records, False


def _damage_at(path: str, record: int, byte: int) -> Damage:
  with tf.io.gfile.GFile(path, 'rb') as file:
    size = file.size()
    file.seek(byte)
    header = file.read(_HEADER)
  if len(header) < _HEADER:
    return Damage(record, byte, _CUT_OFF, tail=True)
  if not _is_header(header):
    what = 'the checksum of its length is wrong'
    return Damage(record, byte, what, tail=True)
  end = byte + _HEADER + struct.unpack_from('<Q', header)[0] + _FOOTER
  if end > size:
    return Damage(record, byte, _CUT_OFF, tail=True)
  return Damage(record, byte, 'the checksum of its data is wrong', tail=False)


def _is_unfinished(path: str, compression: str) -> bool:
  """Returns whether a stream is truncated, which TensorFlow may not report."""
  bits = 16 + zlib.MAX_WBITS if compression == 'GZIP' else zlib.MAX_WBITS
  stream = zlib.decompressobj(bits)
  with tf.io.gfile.GFile(path, 'rb') as file:
    while block := file.read(1 << 20):
      while block:
        stream.decompress(block)
        block = stream.unused_data
        if block:  # gzip members may follow one another
          stream = zlib.decompressobj(bits)
  return not stream.eof


def _is_header(begin: bytes) -> bool:
  if len(begin) < _HEADER:
    return False
  crc = _crc32c(begin[:8])
  masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
  return bool(masked == struct.unpack_from('<I', begin, 8)[0])


def _crc32c(data: bytes) -> int:
  """Returns the CRC-32C (Castagnoli), bit by bit: for headers only."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF

"""TFRecords: a source of tf.train.Examples in TFRecord files."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import feature_spec
from tftrain.data.sources import file_source
from tftrain.data.sources import tfrecord_io

# Holds the features and record counts of the files in its directory.
SIDECAR = 'features.json'


class TFRecords(file_source.Stream):
  """Examples in TFRecord files, compressed or not.

  Files from `write_records` need only their path: a features.json beside them
  holds features and record counts. In other files the records are counted
  first, by their lengths, which takes a second for two million.

  >>> TFRecords('/data/digits/train-*')

  Args:
    paths: A glob, a path or a list of them.
    features: Name -> spec, such as `{'image': 'uint8[28,28,1]', 'ids':
      'int64[?]'}`; `?` is a length that varies. A uint8, float16 or float64 is
      read from its bytes, other numbers from a list of int64 or float. None
      takes the specs of features.json.
    on_corrupt: `stop` raises InputError at damaged records; `skip` reads all
      files once in advance, leaves damaged records out and counts them.

  Raises:
    ConfigError: If `on_corrupt` is unknown, or a spec is invalid.
    InputError: If no file matches, a file is not a TFRecord file or ends inside
      a record, or the first record does not match `features`.
  """

  def __init__(
    self,
    paths: file_source.Paths,
    features: Mapping[str, str] | None = None,
    *,
    on_corrupt: str = 'stop',
  ):
    if on_corrupt not in ('stop', 'skip'):
      raise errors.ConfigError(
        f"TFRecords.on_corrupt = {on_corrupt!r}; give 'stop' or 'skip'"
      )
    self._paths = file_source.find(paths)
    self._compression = _common_compression(self._paths)
    folder = os.path.dirname(self._paths[0])
    sidecar = read_sidecar(os.path.join(folder, SIDECAR))
    if on_corrupt == 'skip':
      contents = {path: tfrecord_io.check(path) for path in self._paths}
      self._note_lost(contents)
    else:
      contents = {path: _counted(path, sidecar) for path in self._paths}
    super().__init__(
      [
        file_source.File(path, piece.records, piece.byte)
        for path, content in contents.items()
        for piece in content.pieces
        if piece.records
      ]
    )
    first = next(intact(self.files[0].path, self._compression), None)
    given = features or sidecar.get('features')
    if given is None:
      raise errors.InputError(
        f'{self._paths[0]}: it is not known what its records hold; give '
        f'TFRecords(features={suggested(first or b"")}'
      )
    self.features = feature_spec.parse(given)
    self.element_spec = feature_spec.element_spec(self.features)
    wrong = None if first is None else mismatch(first, self.features)
    if wrong:
      raise errors.InputError(f'{self.files[0].path} record 0 {wrong}')

  def read(self, number: tf.Tensor) -> tf.data.Dataset:
    path = self.path(number)
    counts = [file.records for file in self.files]
    count = tf.gather(tf.constant(counts, tf.int64), number)
    if self._compression:
      return tf.data.TFRecordDataset(path, self._compression).take(count)
    if not self.lost:
      return tf.data.TFRecordDataset(path)
    begins = [file.byte for file in self.files]
    byte = tf.gather(tf.constant(begins, tf.int64), number)
    return tfrecord_io.records_at(path, byte).take(count)

  def first(self, count: int) -> tuple[bytes, ...]:
    """Returns the first `count` records, serialized."""
    readable = intact(self.files[0].path, self._compression)
    return tuple(
      record for _, record in zip(range(count), readable, strict=False)
    )

  def decode(self, records: tf.Tensor) -> dict[str, Any]:
    return decoded(records, self.features)

  def fingerprint(self) -> Mapping[str, Any]:
    features = feature_spec.texts(self.features)
    return {**super().fingerprint(), 'features': features, 'lost': self.lost}

  def diagnose(self) -> str | None:
    for path in file_source.with_time_limit(self._paths):
      damages = tfrecord_io.check(path).damages
      if damages and not self.lost:
        return _damaged(path, damages)
      readable = intact(path, self._compression)
      for number, record in enumerate(file_source.with_time_limit(readable)):
        wrong = mismatch(record, self.features)
        if wrong:
          return f'{path} record {number} {wrong}'
    return None

  def _note_lost(self, contents: Mapping[str, tfrecord_io.Content]) -> None:
    damaged = {path: c.damages for path, c in contents.items() if c.damages}
    self.lost = sum(len(damages) for damages in damaged.values())
    if len(damaged) == len(contents) and not any(
      content.records for content in contents.values()
    ):
      path, damages = next(iter(damaged.items()))
      raise errors.InputError(f'no record is intact: {path} {damages[0]}')
    for path, damages in damaged.items():
      tail = ', and all after it' if damages[-1].tail else ''
      logging.warning(
        '%s: %d damaged records are left out, first %s%s',
        path,
        len(damages),
        damages[0],
        tail,
      )


def _common_compression(paths: Sequence[str]) -> str:
  kinds = {path: tfrecord_io.compression_of(path) for path in paths}
  for path, kind in kinds.items():
    if kind != kinds[paths[0]]:
      raise errors.InputError(
        f'{path} is {kind or "not compressed"}, {paths[0]} is '
        f'{kinds[paths[0]] or "not"}; make a source of each kind, and a Mixture'
      )
  return kinds[paths[0]]


def _counted(path: str, sidecar: Mapping[str, Any]) -> tfrecord_io.Content:
  """Returns the contents of a file, from features.json or by counting."""
  known = sidecar.get('files', {}).get(os.path.basename(path))
  if known:
    size = tf.io.gfile.stat(path).length
    if size == known['bytes']:
      piece = tfrecord_io.Piece(0, known['records'])
      return tfrecord_io.Content('', (piece,), ())
    if size < known['bytes']:
      raise errors.InputError(
        f'{path} has {size} bytes, {SIDECAR} says {known["bytes"]}: it was cut '
        f'off; write it again, {_OR_SALVAGE}'
      )
  content = tfrecord_io.count(path)
  if content.damages:
    raise errors.InputError(_damaged(path, content.damages))
  return content


_OR_SALVAGE = (
  "salvage it with 'python -m tftrain.data repair', or set "
  "TFRecords(on_corrupt='skip')"
)


def _damaged(path: str, damages: Sequence[tfrecord_io.Damage]) -> str:
  more = f' and {len(damages) - 1} more' if len(damages) > 1 else ''
  return f'{path} {damages[0]}{more}; {_OR_SALVAGE}'


def read_sidecar(sidecar: str) -> dict[str, Any]:
  """Reads `features` and `files` from a features.json; {} if it is missing.

  Raises:
    InputError: If the file is damaged.
  """
  if not tf.io.gfile.exists(sidecar):
    return {}
  with tf.io.gfile.GFile(sidecar) as file:
    text = file.read()
  try:
    found = json.loads(text)
    feature_spec.parse(found['features'])
    for known in found['files'].values():
      int(known['records']), int(known['bytes'])
    return dict(found)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(
      f'{sidecar} is damaged ({errors.one_line(error)}); write the records '
      'again, or remove it and give TFRecords(features=...)'
    ) from error


def intact(path: str, compression: str) -> Iterator[bytes]:
  """Yields the records of a file, up to the first damaged one."""
  records = tf.data.TFRecordDataset(path, compression or None)
  try:
    yield from records.as_numpy_iterator()
  except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
    return


_KINDS = {
  'bytes_list': tf.string,
  'int64_list': tf.int64,
  'float_list': tf.float32,
}


def values_of(record: bytes) -> dict[str, tuple[str, Sequence[Any]]] | None:
  """Returns name -> (list kind, values); None if not a tf.train.Example."""
  example = tf.train.Example()
  try:
    example.ParseFromString(record)
  except Exception:  # protobuf's parse error has no public name
    return None
  features = example.features.feature
  if not features:
    return None
  found = {}
  for name in sorted(features):
    kind = features[name].WhichOneof('kind')
    found[name] = (kind, getattr(features[name], kind).value if kind else ())
  return found


def mismatch(
  record: bytes, features: Mapping[str, feature_spec.Feature]
) -> str | None:
  """Returns the mismatch of a record with its features; None if it matches.

  The text is the end of a sentence that begins with the name of the record.
  """
  values = values_of(record)
  if values is None:
    return 'is no tf.train.Example; only those can be read'
  for name, feature in features.items():
    if name not in values:
      there = ', '.join(
        f'{n} ({_SHORT.get(kind, "empty")})' for n, (kind, _) in values.items()
      )
      return f'has no feature {name!r}; it has: {there}'
    kind, found = values[name]
    if kind is not None and _KINDS[kind] != feature.stored:
      return (
        f'holds {name!r} as {_SHORT[kind]}, features says {feature}; '
        'correct the one or the other'
      )
    wrong = _wrong_size(feature, found)
    if wrong:
      return f'holds {wrong} of {name!r}, features says {feature}'
  return None


_SHORT = {'bytes_list': 'bytes', 'int64_list': 'int64', 'float_list': 'float32'}


def _wrong_size(
  feature: feature_spec.Feature, found: Sequence[Any]
) -> str | None:
  inner = feature.inner
  if feature.is_raw:
    wanted = inner * feature.dtype.size
    size = len(found[0]) if len(found) == 1 else None
    if size != wanted:
      return f'{len(found)} values' if size is None else f'{size} bytes'
    return None
  fits = len(found) % inner == 0 if feature.varies else len(found) == inner
  return None if fits else f'{len(found)} values'


def suggested(record: bytes) -> str:
  """Returns features guessed from a record, for the user to correct."""
  values = values_of(record)
  if values is None:
    return '...), but record 0 is no tf.train.Example'
  found = {}
  for name, (kind, entries) in values.items():
    short = _KINDS[kind].name if kind else 'int64'
    found[name] = short if len(entries) == 1 else f'{short}[{len(entries)}]'
  return f'{found!r})'


def decoded(
  records: tf.Tensor, features: Mapping[str, feature_spec.Feature]
) -> dict[str, Any]:
  """Decodes tf.train.Examples, strings `[n]`, to features, `[n, ...]`."""
  parsed = tf.io.parse_example(
    records, {name: _io(feature) for name, feature in features.items()}
  )
  return {name: _decoded(parsed[name], f) for name, f in features.items()}


def _io(feature: feature_spec.Feature) -> Any:
  """Returns the `tf.io.parse_example` spec of a feature."""
  if feature.varies:
    return tf.io.RaggedFeature(feature.stored, row_splits_dtype=tf.int64)
  shape = () if feature.is_raw else feature.shape
  return tf.io.FixedLenFeature(shape, feature.stored)


def _decoded(parsed: Any, feature: feature_spec.Feature) -> Any:
  """Returns parsed values in the dtype and shape of the feature, `[n, ...]`."""
  if feature.is_raw:
    size = feature.inner * feature.dtype.size
    raw = tf.io.decode_raw(parsed, tf.uint8, fixed_length=size)
    if feature.dtype != tf.uint8:
      raw = tf.reshape(raw, [-1, *feature.shape, feature.dtype.size])
      return tf.bitcast(raw, feature.dtype)
    return tf.reshape(raw, [-1, *feature.shape])
  if feature.varies and len(feature.shape) > 1:
    values = tf.reshape(parsed.values, [-1, *feature.shape[1:]])
    parsed = tf.RaggedTensor.from_row_splits(
      values, parsed.row_splits // feature.inner
    )
  return (
    tf.cast(parsed, feature.dtype) if feature.dtype != parsed.dtype else parsed
  )

"""Writes examples to TFRecord files."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import itertools
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import _numpy_examples
from tftrain.data.sources import feature_spec
from tftrain.data.sources import tfrecord
from tftrain.platform import files


def write_records(
  prefix: str | pathlib.Path,
  examples: Iterable[Mapping[str, Any]],
  features: Mapping[str, str] | None = None,
  *,
  shards: int = 8,
  compression: str = '',
) -> list[pathlib.Path]:
  """Writes examples to TFRecord files, and a features.json beside them.

  >>> write_records('/data/digits/train', [{'image': x, 'label': y}, ...])

  The files, `train-00000-of-00008.tfrecord` and so on, get examples in turn.
  They appear after all examples are written.

  Args:
    prefix: Directory of the files and the beginning of their names.
    examples: Examples, each name -> array, number or text; may be a dataset.
    features: Name -> spec, as in `TFRecords`, needed if lengths vary; None
      takes dtypes and shapes from the first example.
    shards: Number of files.
    compression: '' for no compression, `GZIP` or `ZLIB`.

  Returns:
    The paths of the files.

  Raises:
    ConfigError: If `shards` is below 1, or `compression` or a spec is invalid.
    InputError: If there are fewer examples than shards, an example does not
      match `features`, or an existing features.json has other features.
  """
  _check_options(shards, compression)
  prefix = pathlib.Path(prefix)
  rows = iter(examples)
  if (first := next(rows, None)) is None:
    raise errors.InputError(f'{prefix}: there are 0 examples to write')
  wanted = (
    feature_spec.parse(features) if features else feature_spec.of_example(first)
  )
  sidecar = _sidecar(prefix.parent, wanted)
  files.make_directory(prefix.parent)
  names = [
    f'{prefix.name}-{i:05d}-of-{shards:05d}.tfrecord' for i in range(shards)
  ]
  with files.staged_files(prefix.parent) as staged:
    counts = _write_all(
      [staged / name for name in names],
      (
        _encoded(e, wanted, i)
        for i, e in enumerate(itertools.chain([first], rows))
      ),
      compression,
    )
    if counts[-1] == 0:
      raise errors.InputError(
        f'{prefix}: {sum(counts)} examples do not fill {shards} shards; give '
        f'shards={sum(counts)} or fewer'
      )
  written = [prefix.parent / name for name in names]
  for path, n in zip(written, counts, strict=True):
    known = {'records': n, 'bytes': path.stat().st_size}
    sidecar['files'][path.name] = known
  files.write_json(prefix.parent / tfrecord.SIDECAR, sidecar)
  return written


def _check_options(shards: int, compression: str) -> None:
  if compression not in ('', 'GZIP', 'ZLIB'):
    raise errors.ConfigError(
      f"compression = {compression!r}; give '', 'GZIP' or 'ZLIB'"
    )
  if shards < 1:
    raise errors.ConfigError(f'shards must be at least 1, got {shards}')


def _write_all(
  paths: Sequence[pathlib.Path], records: Iterable[bytes], compression: str
) -> list[int]:
  """Deals records to files in turn; returns the number of records of each."""
  counts = [0] * len(paths)
  with contextlib.ExitStack() as stack:
    writers = [
      stack.enter_context(tf.io.TFRecordWriter(str(path), compression or None))
      for path in paths
    ]
    for number, record in enumerate(records):
      writers[number % len(paths)].write(record)
      counts[number % len(paths)] += 1
  return counts


def _sidecar(
  directory: pathlib.Path, features: Mapping[str, feature_spec.Feature]
) -> dict[str, Any]:
  """Returns the contents of features.json, with the entries of other files.

  Raises:
    InputError: If an existing features.json has other features.
  """
  said = feature_spec.texts(features)
  sidecar = tfrecord.read_sidecar(str(directory / tfrecord.SIDECAR))
  if sidecar.get('features', said) != said:
    raise errors.InputError(
      f'{directory / tfrecord.SIDECAR} has the features {sidecar["features"]}, '
      f'these are {said}; write them to another directory'
    )
  return {'features': said, 'files': sidecar.get('files', {})}


def _encoded(
  example: Mapping[str, Any],
  features: Mapping[str, feature_spec.Feature],
  number: int,
) -> bytes:
  spec = feature_spec.element_spec(features)
  try:
    fitted = _numpy_examples.fitted(dict(example), spec)
  except errors.InputError as error:
    raise errors.InputError(f'example {number}: {error}') from error
  encoded = {name: _list(fitted[name], f) for name, f in features.items()}
  message = tf.train.Example(features=tf.train.Features(feature=encoded))
  return bytes(message.SerializeToString(deterministic=True))


def _list(value: np.ndarray, feature: feature_spec.Feature) -> tf.train.Feature:
  if feature.is_raw:
    raw = tf.train.BytesList(value=[value.tobytes()])
    return tf.train.Feature(bytes_list=raw)
  flat = value.reshape(-1)
  if feature.stored == tf.string:
    texts = [tf.compat.as_bytes(text) for text in flat]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))
  if feature.stored == tf.int64:
    numbers = tf.train.Int64List(value=flat.astype(np.int64))
    return tf.train.Feature(int64_list=numbers)
  return tf.train.Feature(float_list=tf.train.FloatList(value=flat))

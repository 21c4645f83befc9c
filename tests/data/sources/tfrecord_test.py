"""TFRecords: damage, features that do not fit, and skipping."""

import struct

import numpy as np
import pytest

from tests.support import data_errors
from tests.support import resumable_runs
from tests.support import small_tasks
import tftrain
from tftrain.data.sources import shuffle as shuffle_lib


def begins(path):
  """Where each record of a file begins."""
  data, byte, found = path.read_bytes(), 0, []
  while byte < len(data):
    found.append(byte)
    byte += struct.unpack_from('<Q', data, byte)[0] + 16
  return found


def damaged(path, byte, length=None):
  """Flips a bit there, or cuts the file off there."""
  data = bytearray(path.read_bytes())
  if length is None:
    data[byte] ^= 4
  path.write_bytes(data[:length])
  return path


def trainer(source, **options):
  pipeline = tftrain.data.Examples(source, 8, select=('x', 'label'), **options)
  return tftrain.Trainer(small_tasks.supervised(), pipeline)


def test_a_file_that_is_no_tfrecord_file(tmp_path):
  path = tmp_path / 'a.rec'
  path.write_text('number,label\n' * 20)
  with data_errors.refused(
    f'{path} is no TFRecord file, or is damaged at its first byte: what it '
    'begins with is no header of a record; remove it, or write it again'
  ):
    tftrain.data.TFRecords(path, data_errors.SPEC)


def test_features_that_are_not_known(tmp_path):
  path = data_errors.write_records(tmp_path / 'a.rec', 3)
  with data_errors.refused(
    f'{path}: it is not known what its records hold; give '
    "TFRecords(features={'label': 'int64', 'x': 'float32[6]'})"
  ):
    tftrain.data.TFRecords(path)


@pytest.mark.parametrize(
  ('features', 'text'),
  [
    (
      {'image': 'uint8[4]'},
      "has no feature 'image'; it has: label (int64), x (float32)",
    ),
    (
      {'x': 'int64[6]'},
      "holds 'x' as float32, features says int64[6]; correct the one or the "
      'other',
    ),
    (
      {'label': 'uint8'},
      "holds 'label' as int64, features says uint8; correct the one or the "
      'other',
    ),
    (
      {'x': 'float32[2,2]'},
      "holds 6 values of 'x', features says float32[2,2]",
    ),
    (
      {'x': 'float32[?,4]'},
      "holds 6 values of 'x', features says float32[?,4]",
    ),
  ],
)
def test_features_that_the_first_record_does_not_have(features, text, tmp_path):
  path = data_errors.write_records(tmp_path / 'a.rec', 3)
  with data_errors.refused(f'{path} record 0 {text}'):
    tftrain.data.TFRecords(path, features)


_DEEP = {
  'shape': (
    data_errors.record(40, features=5),
    "holds 5 values of 'x', features says float32[6]",
  ),
  'dtype': (
    {**data_errors.record(40), 'label': np.float32(1)},
    "holds 'label' as float32, features says int64; correct the one or the "
    'other',
  ),
  'missing': (
    {'x': data_errors.record(40)['x']},
    "has no feature 'label'; it has: x (float32)",
  ),
  'no example': (b'\xff\xff', 'is no tf.train.Example; only those can be read'),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', _DEEP)
def test_a_record_deep_in_a_file_that_is_not_like_the_others(kind, tmp_path):
  changed, text = _DEEP[kind]
  path = data_errors.write_records(tmp_path / 'a.rec', changed={40: changed})
  run = trainer(tftrain.data.TFRecords(path, data_errors.SPEC), shuffle=8)
  with data_errors.refused(f'{path} record 40 {text}'):
    run.train(20)
  assert 1 < run.step < 8


def test_an_evaluation_names_the_record_too(tmp_path):
  path = data_errors.write_records(
    tmp_path / 'a.rec', changed={40: _DEEP['shape'][0]}
  )
  data = tftrain.data.Examples(
    tftrain.data.TFRecords(path, data_errors.SPEC),
    8,
    select=('x', 'label'),
    training=False,
  )
  evaluator = tftrain.Evaluator(small_tasks.supervised(), data)
  with data_errors.refused(f'{path} record 40 {_DEEP["shape"][1]}'):
    evaluator.evaluate()


def test_a_file_that_ends_inside_a_record(tmp_path):
  path = data_errors.write_records(tmp_path / 'a.rec')
  where = begins(path)
  for length in (where[40] + 30, where[40] + 12, where[40] + 5, where[40] + 1):
    damaged(data_errors.write_records(path), 0, length)
    with data_errors.refused(
      f'{path} record 40: the file ends inside of it{data_errors.SALVAGE}'
    ):
      tftrain.data.TFRecords(path, data_errors.SPEC)


def test_a_file_shorter_than_features_json_says(tmp_path):
  (path,) = tftrain.data.write_records(
    tmp_path / 'a',
    map(data_errors.record, range(57)),
    data_errors.SPEC,
    shards=1,
  )
  size = path.stat().st_size
  damaged(path, 0, begins(path)[40])  # between two records
  with data_errors.refused(
    f'{path} has {path.stat().st_size} bytes, features.json says {size}: it '
    f'was cut off; write it again, {data_errors.SALVAGE[2:]}'
  ):
    tftrain.data.TFRecords(path)
  assert tftrain.data.TFRecords(path, on_corrupt='skip').num_examples == 40


def test_a_file_longer_than_features_json_says_is_counted(tmp_path):
  (path,) = tftrain.data.write_records(
    tmp_path / 'a',
    map(data_errors.record, range(57)),
    data_errors.SPEC,
    shards=1,
  )
  path.write_bytes(2 * path.read_bytes())
  assert tftrain.data.TFRecords(path).num_examples == 114


@pytest.mark.parametrize(
  'text',
  [
    '{"features": {"x"',
    '{"files": {}}',
    '{"features": {"x": "int7"}}',
    '[]',
    '{"features": {"x": "int64"}, "files": []}',
  ],
)
def test_a_features_json_that_is_damaged(text, tmp_path):
  path = data_errors.write_records(tmp_path / 'a.rec', 3)
  sidecar = tmp_path / 'features.json'
  sidecar.write_text(text)
  with data_errors.refused(
    f'{sidecar} is damaged (...); write the records again, or remove it and '
    'give TFRecords(features=...)'
  ):
    tftrain.data.TFRecords(path)


_DAMAGES = {  # of record 40: offset -> (what it is called, nothing after it)
  13: ('the checksum of its data is wrong', False),
  3: ('the checksum of its length is wrong', True),
}


@pytest.mark.parametrize('offset', _DAMAGES)
def test_a_flipped_byte_is_found_in_its_record(offset, tmp_path):
  data_errors.write_records(tmp_path / 'a.rec', 9)
  path = data_errors.write_records(tmp_path / 'b.rec')
  byte = begins(path)[40]
  source = tftrain.data.TFRecords(tmp_path / '*.rec', data_errors.SPEC)
  damaged(path, byte + offset)  # while it is used, as a failing disk would
  text = (
    f'{path} record 40 (byte {byte}): {_DAMAGES[offset][0]}'
    f'{data_errors.SALVAGE}'
  )
  with data_errors.refused(text):
    data_errors.read(source)
  with data_errors.refused(text):
    trainer(source, shuffle=8).train(20)


def test_a_flipped_length_is_found_before_anything_is_read(tmp_path):
  path = data_errors.write_records(tmp_path / 'a.rec')
  damaged(path, begins(path)[40] + 3)
  with data_errors.refused(f'{path} record 40...{data_errors.SALVAGE}'):
    tftrain.data.TFRecords(path, data_errors.SPEC)


@pytest.mark.parametrize(
  ('offset', 'function'),
  [
    (3, None),
    (13, None),
    ('cut', None),
    (None, None),
    pytest.param(13, lambda one: one, marks=pytest.mark.slow),
    pytest.param('cut', lambda one: one, marks=pytest.mark.slow),
  ],
)
def test_skipping_keeps_what_is_intact_and_counts_what_is_lost(
  offset, function, tmp_path
):
  first = data_errors.write_records(tmp_path / 'a.rec', 9)
  path = data_errors.write_records(tmp_path / 'b.rec', 57)
  where = begins(path)
  lost, kept = {'cut': (1, 40), None: (0, 57)}.get(offset, (1, 40))
  numbers = [*range(9), *range(kept)]
  if offset == 'cut':
    damaged(path, 0, where[40] + 20)
  elif offset is not None:
    damaged(path, where[40] + offset)
    if not _DAMAGES[offset][1]:
      damaged(path, where[43] + offset)
      damaged(first, 13)
      lost, numbers = 3, [*range(1, 9), *range(40), 41, 42, *range(44, 57)]
  source = tftrain.data.TFRecords(
    tmp_path / '*.rec', data_errors.SPEC, on_corrupt='skip'
  )
  pipeline = tftrain.data.Examples(source, 8, training=False, map=function)
  assert pipeline.lost == lost
  assert pipeline.num_examples == len(numbers)
  found = [batch['x'][:, 0].numpy() for batch in pipeline.dataset(0)]
  assert np.concatenate(found).tolist() == numbers
  shuffled = tftrain.data.Examples(source, 8, epochs=1, shuffle=8, map=function)
  found = [batch['x'][:, 0].numpy() for batch in shuffled.dataset(0)]
  assert sorted(np.concatenate(found).tolist()) == sorted(numbers)
  said = f'damaged records left out: {lost}'
  assert (said in pipeline.describe()) == (lost > 0)


def test_skipping_when_nothing_is_intact(tmp_path):
  path = damaged(data_errors.write_records(tmp_path / 'a.rec', 1), 13)
  with data_errors.refused(
    f'no record is intact: {path} record 0 (byte 0): the checksum of its data '
    'is wrong'
  ):
    tftrain.data.TFRecords(path, data_errors.SPEC, on_corrupt='skip')


def test_an_intact_source_has_nothing_to_say(tmp_path):
  path = data_errors.write_records(tmp_path / 'a.rec', 5)
  source = tftrain.data.TFRecords(path, data_errors.SPEC)
  assert source.diagnose() is None
  assert len(list(source.chunks(2, shuffle_lib.Order()))) == 3


def test_records_that_are_left_out_are_reported(tmp_path):
  examples = (
    {'x': x, 'y': y}
    for x, y in zip(resumable_runs.X, resumable_runs.Y, strict=True)
  )
  tftrain.data.write_records(tmp_path / 'a', examples, shards=1)
  (path,) = tmp_path.glob('*.tfrecord')
  damaged = bytearray(path.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  path.write_bytes(damaged)
  source = tftrain.data.TFRecords(path, on_corrupt='skip')
  assert source.num_examples == 66
  data = tftrain.data.Examples(source, 8, select=('x', 'y'))
  report = tftrain.Trainer(small_tasks.supervised(), data).train(3)
  assert report.scalars['lost_records'] == 1

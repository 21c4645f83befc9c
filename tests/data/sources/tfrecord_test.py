"""Bad files and wrong arguments: one line each that says what to change."""

import gzip
import json
import re
import struct

import numpy as np
import pytest
import tensorflow as tf

from tests import cases
from tests.inputs_test import serialized
import tftrain
from tftrain import errors
from tftrain.data.sources import shuffle as shuffle_lib

_SPEC = {'x': 'float32[6]', 'label': 'int64'}
_SALVAGE = (
  "; salvage it with 'python -m tftrain.data repair', or set "
  "TFRecords(on_corrupt='skip')"
)


def refused(text, kind=errors.InputError):
  """The whole text of the error; `...` stands for anything."""
  pattern = '.*'.join(map(re.escape, text.split('...')))
  return pytest.raises(kind, match=f'^(?!.*\n){pattern}$')


def record(number, features=6):
  x = np.full([features], number, np.float32)
  return {'x': x, 'label': np.int64(number % 3)}


def write(path, count=57, changed=None, compression=''):
  """A file of records; `changed`: number -> another example, or bytes."""
  changed = changed or {}
  with tf.io.TFRecordWriter(str(path), compression) as writer:
    for number in range(count):
      one = changed.get(number, record(number))
      writer.write(one if isinstance(one, bytes) else serialized(one))
  return path


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


def read(source, **options):
  """Reads all of it."""
  options = {'training': False, **options}
  pipeline = tftrain.data.Examples(source, 8, **options)
  with tftrain.data.explained(pipeline):
    for _ in pipeline.dataset(0):
      pass


def trainer(source, **options):
  pipeline = tftrain.data.Examples(source, 8, select=('x', 'label'), **options)
  return tftrain.Trainer(cases.supervised(), pipeline)


# Which files.


@pytest.mark.parametrize(
  'make',
  [
    lambda paths: tftrain.data.TFRecords(paths, _SPEC),
    tftrain.data.TextLines,
    tftrain.data.Csv,
    tftrain.data.JsonLines,
    tftrain.data.TextFiles,
  ],
)
def test_files_that_are_not_there(make, tmp_path):
  (tmp_path / 'other.txt').write_text('x\n1\n')
  missing = tmp_path / 'train-*'
  with refused(
    f'no file matches {missing}: {tmp_path} holds 1 files, such as other.txt'
  ):
    make(missing)
  nowhere = tmp_path / 'none' / 'train-*'
  with refused(
    f'no file matches {nowhere}: there is no directory {tmp_path / "none"}'
  ):
    make(str(nowhere))
  (tmp_path / 'void').mkdir()
  with refused(
    f'no file matches {tmp_path / "void" / "a"}: {tmp_path / "void"} is empty'
  ):
    make([tmp_path / 'void' / 'a'])
  with refused('the list of files is empty; give paths or a glob'):
    make([])
  with refused(f'{tmp_path} is a directory; give {tmp_path}/* for files'):
    make(tmp_path)
  (tmp_path / 'empty').touch()
  with refused(f'{tmp_path / "empty"}: file is empty; write or remove it'):
    make(tmp_path / 'empty')


def test_a_file_that_is_no_tfrecord_file(tmp_path):
  path = tmp_path / 'a.rec'
  path.write_text('number,label\n' * 20)
  with refused(
    f'{path} is no TFRecord file, or is damaged at its first byte: what it '
    'begins with is no header of a record; remove it, or write it again'
  ):
    tftrain.data.TFRecords(path, _SPEC)


def test_files_of_several_compressions(tmp_path):
  plain = write(tmp_path / 'a.rec', 3)
  packed = write(tmp_path / 'b.rec', 3, compression='GZIP')
  with refused(
    f'{packed} is GZIP, {plain} is not; make a source of each kind, and a '
    'Mixture'
  ):
    tftrain.data.TFRecords(tmp_path / '*.rec', _SPEC)
  (tmp_path / 'a.txt').write_text('line')
  (tmp_path / 'b.txt').write_bytes(gzip.compress(b'line'))
  with refused(
    'some of the files are gzip and some are not; make a source of each kind, '
    'and a Mixture'
  ):
    tftrain.data.TextLines(tmp_path / '*.txt')


# What is in records.


def test_features_that_are_not_known(tmp_path):
  path = write(tmp_path / 'a.rec', 3)
  with refused(
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
  path = write(tmp_path / 'a.rec', 3)
  with refused(f'{path} record 0 {text}'):
    tftrain.data.TFRecords(path, features)


_DEEP = {
  'shape': (
    record(40, features=5),
    "holds 5 values of 'x', features says float32[6]",
  ),
  'dtype': (
    {**record(40), 'label': np.float32(1)},
    "holds 'label' as float32, features says int64; correct the one or the "
    'other',
  ),
  'missing': (
    {'x': record(40)['x']},
    "has no feature 'label'; it has: x (float32)",
  ),
  'no example': (b'\xff\xff', 'is no tf.train.Example; only those can be read'),
}


@pytest.mark.parametrize('kind', _DEEP)
def test_a_record_deep_in_a_file_that_is_not_like_the_others(kind, tmp_path):
  changed, text = _DEEP[kind]
  path = write(tmp_path / 'a.rec', changed={40: changed})
  run = trainer(tftrain.data.TFRecords(path, _SPEC), shuffle=8)
  with refused(f'{path} record 40 {text}'):
    run.train(20)
  assert 1 < run.step < 8


def test_an_evaluation_names_the_record_too(tmp_path):
  path = write(tmp_path / 'a.rec', changed={40: _DEEP['shape'][0]})
  data = tftrain.data.Examples(
    tftrain.data.TFRecords(path, _SPEC),
    8,
    select=('x', 'label'),
    training=False,
  )
  evaluator = tftrain.Evaluator(cases.supervised(), data)
  with refused(f'{path} record 40 {_DEEP["shape"][1]}'):
    evaluator.evaluate()


# Damage.


def test_a_file_that_ends_inside_a_record(tmp_path):
  path = write(tmp_path / 'a.rec')
  where = begins(path)
  for length in (where[40] + 30, where[40] + 12, where[40] + 5, where[40] + 1):
    damaged(write(path), 0, length)
    with refused(f'{path} record 40: the file ends inside of it{_SALVAGE}'):
      tftrain.data.TFRecords(path, _SPEC)


def test_a_file_shorter_than_features_json_says(tmp_path):
  (path,) = tftrain.data.write_records(
    tmp_path / 'a', map(record, range(57)), _SPEC, shards=1
  )
  size = path.stat().st_size
  damaged(path, 0, begins(path)[40])  # between two records
  with refused(
    f'{path} has {path.stat().st_size} bytes, features.json says {size}: it '
    f'was cut off; write it again, {_SALVAGE[2:]}'
  ):
    tftrain.data.TFRecords(path)
  assert tftrain.data.TFRecords(path, on_corrupt='skip').num_examples == 40


def test_a_file_longer_than_features_json_says_is_counted(tmp_path):
  (path,) = tftrain.data.write_records(
    tmp_path / 'a', map(record, range(57)), _SPEC, shards=1
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
  path = write(tmp_path / 'a.rec', 3)
  sidecar = tmp_path / 'features.json'
  sidecar.write_text(text)
  with refused(
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
  write(tmp_path / 'a.rec', 9)
  path = write(tmp_path / 'b.rec')
  byte = begins(path)[40]
  source = tftrain.data.TFRecords(tmp_path / '*.rec', _SPEC)
  damaged(path, byte + offset)  # while it is used, as a failing disk would
  text = f'{path} record 40 (byte {byte}): {_DAMAGES[offset][0]}{_SALVAGE}'
  with refused(text):
    read(source)
  with refused(text):
    trainer(source, shuffle=8).train(20)


def test_a_flipped_length_is_found_before_anything_is_read(tmp_path):
  path = write(tmp_path / 'a.rec')
  damaged(path, begins(path)[40] + 3)
  with refused(f'{path} record 40...{_SALVAGE}'):
    tftrain.data.TFRecords(path, _SPEC)


@pytest.mark.parametrize('kind', ['GZIP', 'ZLIB'])
def test_a_compressed_stream_that_breaks_off(kind, tmp_path):
  path = write(tmp_path / 'a.rec', compression=kind)
  whole = path.read_bytes()
  for length in (len(whole) - 1, len(whole) // 2):
    path.write_bytes(whole[:length])
    with refused(f'{path} record ...: ...{_SALVAGE}') as info:
      tftrain.data.TFRecords(path, _SPEC)
    assert 'failed with' not in str(info.value)  # TensorFlow's half sentence


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
  first = write(tmp_path / 'a.rec', 9)
  path = write(tmp_path / 'b.rec', 57)
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
  source = tftrain.data.TFRecords(tmp_path / '*.rec', _SPEC, on_corrupt='skip')
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
  path = damaged(write(tmp_path / 'a.rec', 1), 13)
  with refused(
    f'no record is intact: {path} record 0 (byte 0): the checksum of its data '
    'is wrong'
  ):
    tftrain.data.TFRecords(path, _SPEC, on_corrupt='skip')


# Lengths.


def ragged(*lengths):
  counts = tf.constant(lengths, tf.int64)
  return tftrain.data.InMemory(
    {'ids': tf.ragged.range(counts, row_splits_dtype=tf.int64)}
  )


def test_lengths_that_vary_without_a_batcher():
  with refused(
    "cannot batch 'ids': its length varies; give Examples(batcher=...) Padded, "
    'Bucketed, Packed or Ragged'
  ):
    tftrain.data.Examples(ragged(1, 2), 2)


@pytest.mark.parametrize(
  ('batcher', 'what'),
  [
    (tftrain.data.Padded(4), 'Padded.length = 4'),
    (tftrain.data.Bucketed([2, 4]), 'Bucketed.boundaries[-1] = 4'),
    (tftrain.data.Packed(4), 'Packed.length = 4'),
  ],
)
def test_a_sequence_that_is_too_long(batcher, what):
  with refused(
    f"a sequence is longer than {what}: 9; raise it, or set too_long='truncate'"
  ):
    read(ragged(1, 2, 9, 3), batcher=batcher)


def test_batchers_that_have_nothing_to_do():
  source = tftrain.data.InMemory({'x': np.zeros([4, 2])})
  with refused(
    "Bucketed: no feature varies in length; give a spec such as 'int64[?]', or "
    'leave the batcher out'
  ):
    tftrain.data.Examples(source, 2, batcher=tftrain.data.Bucketed([2]))
  with refused(
    "Packed: every feature must vary in length ('int64[?]'); drop the others "
    'in Examples.map'
  ):
    tftrain.data.Examples(source, 2, batcher=tftrain.data.Packed(2))


def test_features_of_unequal_length_cannot_be_packed_together():
  lengths = tf.constant([1, 2], tf.int64)
  source = tftrain.data.InMemory({
    'x': tf.ragged.range(lengths, row_splits_dtype=tf.int64),
    'y': tf.ragged.range(lengths[::-1], row_splits_dtype=tf.int64),
  })  # fmt: skip
  with refused(
    'Packed: the features of an example differ in length; make them alike, or '
    'drop one in Examples.map'
  ):
    read(source, batcher=tftrain.data.Packed(4))


def test_ragged_batches_cannot_be_padded_with_rows():
  with refused(
    "Examples.remainder = 'pad' needs Padded or Bucketed: rows of ragged "
    'tensors cannot be filled up',
    errors.ConfigError,
  ):
    tftrain.data.Examples(
      ragged(1, 2, 3), 2, batcher=tftrain.data.Ragged(), remainder='pad'
    )


# Functions.


def test_a_filter_that_drops_everything():
  source = tftrain.data.InMemory(np.arange(57))
  with refused(
    'Examples.filter keeps 0 of 57 examples; correct it, or the source'
  ):
    tftrain.data.Examples(source, 8, filter=lambda x: x < 0)


@pytest.mark.parametrize(
  ('draw', 'op'),
  [
    (lambda: tf.random.uniform([]), 'RandomUniform'),
    (lambda: tf.random.normal([]), 'RandomStandardNormal'),
    (lambda: tf.random.uniform([], 0, 9, tf.int32), 'RandomUniformInt'),
  ],
)
def test_a_map_that_draws_from_a_state_is_refused(draw, op):
  source = tftrain.data.InMemory(np.zeros([9], np.float32))
  text = (
    f'Examples.map draws random numbers with {op}, which no run can repeat; '
    'let Examples.map take a second argument `seed`, and use '
    'tf.random.stateless_uniform there'
  )
  with refused(text):
    tftrain.data.Examples(source, 8, map=lambda x: (x, draw()))
  with refused(text):
    tftrain.data.Examples(source, 8, map=lambda x, seed: (x, draw()))
  accepted = lambda x, seed: x + tf.random.stateless_uniform([], seed)
  tftrain.data.Examples(source, 8, map=accepted)


@pytest.mark.parametrize('where', ['filter', 'map_batch', 'mapped'])
def test_other_functions_that_draw_from_a_state_are_refused_too(where):
  source = tftrain.data.InMemory(np.arange(9.0))
  draw = lambda x: x + tf.random.uniform([], dtype=tf.float64)
  with refused('...draws random numbers with RandomUniform...'):
    if where == 'mapped':
      tftrain.data.Examples(tftrain.data.Mapped(source, draw), 8)
    else:
      function = draw if where == 'map_batch' else lambda x: draw(x) > 3
      tftrain.data.Examples(source, 8, **{where: function})


def test_a_select_of_what_is_not_there():
  source = tftrain.data.InMemory({'x': np.arange(9), 'y': np.arange(9)})
  with refused("Examples.select: there is no 'z'; there are x, y"):
    tftrain.data.Examples(source, 8, select=('x', 'z'))


# Lines.


@pytest.mark.parametrize(
  ('line', 'text'),
  [
    (',b,40', "nothing in column 'size', which is float32"),
    ('1.5,b', '2 values, the header names 3 columns'),
    ('1.5,b,40,7', '4 values, the header names 3 columns'),
    ('x,b,40', "'x' in column 'size', which is float32"),
    ('1.5,b,4.0', "'4.0' in column 'number', which is int64"),
  ],
)
def test_a_csv_row_that_does_not_fit(line, text, tmp_path):
  features = {'size': 'float32', 'name': 'string', 'number': 'int64'}
  rows = [f'{n}.5,a,{n}' for n in range(150)]
  rows[130] = line
  path = tmp_path / 'a.csv'
  path.write_text('\n'.join(['size,name,number', *rows]))
  with refused(f'{path} line 132: {text}'):
    read(tftrain.data.Csv(path))
  with refused(f'{path} line 132: {text}'):
    read(tftrain.data.Csv(path, features))


def test_a_csv_text_may_be_empty(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('name,number\n,1\nb,2\n')
  (batch,) = tftrain.data.Examples(
    tftrain.data.Csv(path), 2, training=False
  ).peek()
  assert batch['name'].tolist() == [b'', b'b']


def test_a_csv_of_other_columns(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('size,name\n1,2\n')
  with refused(f"{path} has no column 'length'; it has size, name"):
    tftrain.data.Csv(path, {'length': 'int64'})
  with refused(
    "Csv.features['size'] = 'int64[2]'; give 'int64', 'float32' or 'string'",
    errors.ConfigError,
  ):
    tftrain.data.Csv(path, {'size': 'int64[2]'})
  other = tmp_path / 'b.csv'
  other.write_text('name,size\n1,2\n')
  with refused(
    f'{other} has the columns name, size, a.csv has size, name; make a source '
    'of each'
  ):
    tftrain.data.Csv(tmp_path / '*.csv')
  path.write_text('size,size\n1,2\n')
  with refused(
    f'{path}: two columns have the same name; the header is size, size'
  ):
    tftrain.data.Csv(path)
  path.write_text('size,name\n')
  with refused(f'{path}: there is no line below the header'):
    tftrain.data.Csv(path)


@pytest.mark.parametrize(
  ('line', 'text'),
  [
    ('{"x": [1, 2], ', '...Expecting property name...'),
    ('{"x": [1, 2]}', "has no 'name'; it has x"),
    ('{"x": [1, 2], "name": null}', "has no 'name'; it has name, x"),
    ('[1]', 'it is no object; write {"name": value}'),
    (
      '{"x": [1.5, 2], "name": "a"}',
      'x is float64[2], expected int64[2]',
    ),
    ('{"x": [1, 2, 3], "name": "a"}', 'x is int64[3], expected int64[2]'),
    ('{"x": "no", "name": "a"}', 'x is ...[], expected int64[2]'),
  ],
)
def test_a_json_line_that_does_not_fit(line, text, tmp_path):
  lines = [json.dumps({'x': [n, n], 'name': 'a'}) for n in range(57)]
  lines[40] = line
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(lines))
  with refused(f'{path} line 41: {text}'):
    read(tftrain.data.JsonLines(path))
  path.write_text(line)
  with refused(f'{path} line 1: {text}'):
    tftrain.data.JsonLines(path, {'x': 'int64[2]', 'name': 'string'})


def test_a_gzip_text_that_breaks_off(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(gzip.compress(b'line\n' * 99)[:-9])
  with refused(f'{path} cannot be read to its end: ...; write it again'):
    tftrain.data.TextLines(path)


# Folders of images.


def picture(path, height=4):
  path.parent.mkdir(exist_ok=True)
  image = tf.zeros([height, 4, 3], tf.uint8)
  path.write_bytes(tf.io.encode_png(image).numpy())


def test_an_image_folder_without_images(tmp_path):
  with refused(f'there is no directory {tmp_path / "none"}'):
    tftrain.data.ImageFolder(tmp_path / 'none')
  text = (
    f'{tmp_path} holds no directory of images; put them in {tmp_path}/<class>/,'
    ' as .jpg, .jpeg, .png, .gif, .bmp'
  )
  with refused(text):
    tftrain.data.ImageFolder(tmp_path)
  picture(tmp_path / 'a.png')
  with refused(text):
    tftrain.data.ImageFolder(tmp_path)


def test_images_that_are_none_or_of_another_size(tmp_path):
  for n in range(20):
    picture(tmp_path / 'cat' / f'{n:02d}.png')
  other = tmp_path / 'cat' / '13.png'
  picture(other, 5)
  with refused(
    f'{other} is [5, 4, 3], others are [4, 4, 3]; give '
    'ImageFolder(size=(height, width))'
  ):
    read(tftrain.data.ImageFolder(tmp_path))
  read(tftrain.data.ImageFolder(tmp_path, size=(4, 4)))
  other.write_bytes(b'no image')
  with refused(f'{other} is no image: ...; remove it'):
    read(tftrain.data.ImageFolder(tmp_path))
  first = tmp_path / 'cat' / '00.png'
  first.write_bytes(b'no image')
  with refused(f'{first} is no image: ...; remove it'):
    tftrain.data.ImageFolder(tmp_path)


# Python.


class Items:
  """Twelve examples, the one of index 7 as `bad` makes it."""

  def __init__(self, bad):
    self._bad = bad

  def __len__(self):
    return 12

  def __getitem__(self, index):
    return self._bad() if index == 7 else np.zeros([2], np.float32)


def broken():
  raise KeyError('no such image')


_BAD = {
  'raises': (broken, "'no such image'"),
  'shape': (lambda: np.zeros([3], np.float32), 'is float32[3], expected'),
  'dtype': (lambda: 'text', 'is <U4[], expected'),
  'nothing': (lambda: None, 'is object[], expected'),
}


@pytest.mark.parametrize('kind', _BAD)
def test_an_item_that_fails_is_named(kind):
  bad, text = _BAD[kind]
  with refused(f'Items[7]: ...{text}...'):
    read(tftrain.data.RandomAccess(Items(bad)))


@pytest.mark.parametrize('kind', _BAD)
def test_an_example_of_a_generator_that_fails_is_named(kind):
  bad, text = _BAD[kind]

  def numbers():
    for n in range(12):
      yield bad() if n == 5 else np.zeros([2], np.float32)

  with refused(f'...numbers() example 5: ...{text}...'):
    read(tftrain.data.Generator(numbers))


def test_a_generator_that_raises_between_examples_is_named():
  def numbers():
    yield from range(5)
    raise OSError('disk gone')

  with refused('...numbers() example 5: disk gone'):
    read(tftrain.data.Generator(numbers))


def test_what_is_no_random_access():
  with refused(
    'generator has no __getitem__; give a list, or a class that has __len__ '
    'and __getitem__, or use Generator'
  ):
    tftrain.data.RandomAccess(n for n in range(3))
  with refused('list has 0 examples'):
    tftrain.data.RandomAccess([])


def test_what_is_no_generator_function():
  with refused(
    'Generator takes a function, got generator; a generator itself can be read '
    'only once'
  ):
    tftrain.data.Generator(n for n in range(3))
  with refused('...() yields 0 examples'):
    tftrain.data.Generator(lambda: [])
  for size in (1, 2, 9):
    once = iter(range(size))
    with refused(
      '...() yields nothing the second time; make what it reads inside of it'
    ):
      tftrain.data.Generator(lambda once=once: once)


def test_an_npz_that_is_none(tmp_path):
  path = tmp_path / 'a.npz'
  with refused(
    f'{path} cannot be read as .npz: ...; write it with np.savez(path, '
    'name=array)'
  ):
    tftrain.data.Npz(path)
  path.write_bytes(b'PK\x03\x04 and so on')
  with refused(f'{path} cannot be read as .npz: ...'):
    tftrain.data.Npz(path)
  np.savez(path, x=np.zeros(3), y=np.zeros(4))
  with refused(
    'the arrays have 3, 4 rows; give each the same number of examples'
  ):
    tftrain.data.Npz(path)


# Other formats.


def test_a_parquet_file_that_does_not_fit(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  path = tmp_path / 'a.parquet'
  path.write_text('no parquet')
  with refused(f'{path} is no Parquet file: ...; write it again'):
    tftrain.data.Parquet(path)
  rows = [{'x': [n, n], 'name': 'a'} for n in range(57)]
  rows[40]['x'] = [1]
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  with refused(f"{path} has no column 'y'; it has x, name"):
    tftrain.data.Parquet(path, ['y'])
  with refused(f'{path} row 40 of all files: x is int64[1], expected int64[2]'):
    read(tftrain.data.Parquet(path))


def test_an_array_record_that_does_not_fit(tmp_path):
  module = pytest.importorskip('array_record.python.array_record_module')
  path = tmp_path / 'a.array_record'
  writer = module.ArrayRecordWriter(str(path), 'group_size:1')
  for n in range(57):
    writer.write(serialized(record(n, features=5 if n == 40 else 6)))
  writer.close()
  with refused(
    f"{path} record 0 holds 6 values of 'x', features says float32[5]"
  ):
    tftrain.data.ArrayRecord(path, {'x': 'float32[5]'})
  with refused(
    f"{path} ...record 40 holds 5 values of 'x', features says float32[6]"
  ):
    read(tftrain.data.ArrayRecord(path, _SPEC))


def test_a_tfds_that_is_not_there(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('importlib_resources')
  with refused(
    "Tfds('no_such_data', 'train'): ...; prepare it with 'tfds build "
    "--file_format=array_record no_such_data'"
  ):
    tftrain.data.Tfds('no_such_data', 'train', data_dir=str(tmp_path))


# Mixtures, and arguments.


def test_a_mixture_of_what_does_not_go_together():
  x, y = (
    tftrain.data.InMemory(np.arange(9)),
    tftrain.data.InMemory(np.arange(9.0)),
  )
  with refused(
    "Mixture: examples of 'y' are TensorSpec(shape=(), dtype=tf.float64, "
    "name=None), those of 'x' TensorSpec(shape=(), dtype=tf.int64, name=None); "
    'make them alike with tftrain.data.Mapped'
  ):
    tftrain.data.Mixture({'x': x, 'y': y})
  with refused(
    'Mixture.weights is of x, z, the parts are x, y; give each a weight',
    errors.ConfigError,
  ):
    tftrain.data.Mixture({'x': x, 'y': x}, {'x': 1, 'z': 2})
  with refused(
    'Mixture.parts is empty; give {name: source}', errors.ConfigError
  ):
    tftrain.data.Mixture({})
  for weights in ({'x': -1, 'y': 2}, {'x': 0, 'y': 0}):
    with refused('Mixture.weights = ...; give numbers of at least 0, not all 0',
                 errors.ConfigError):  # fmt: skip
      tftrain.data.Mixture({'x': x, 'y': x}, weights)
  with refused(
    'Mixture.temperature = 0; give a number above 0', errors.ConfigError
  ):
    tftrain.data.Mixture({'x': x}, temperature=0)
  with refused("Mixture: how many examples 'x' has is not known; give weights"):
    tftrain.data.Mixture({'x': tftrain.data.Generator(lambda: range(3))})
  for options in ({'training': False}, {'epochs': 2}):
    with refused(
      'a Mixture has no epochs: it goes on for ever; give the run steps, and '
      'evaluate on its parts'
    ):
      tftrain.data.Examples(tftrain.data.Mixture({'x': x}), 2, **options)


def test_what_is_no_source():
  text = (
    'Examples takes a source such as TFRecords or InMemory, got {}; arrays go '
    'into Arrays, a dataset of batches into DatasetPipeline'
  )
  with refused(text.format('_RangeDataset')):
    tftrain.data.Examples(tf.data.Dataset.range(9), 2)
  with refused(text.format('ndarray')):
    tftrain.data.Examples(np.arange(9), 2)
  with refused(text.format('str')):
    tftrain.data.Examples('/data/train-*', 2)


@pytest.mark.parametrize(
  ('options', 'text'),
  [
    (
      {'remainder': 'skip'},
      "Examples.remainder = 'skip'; give 'keep', 'drop' or 'pad'",
    ),
    (
      {'holdout': 0.5, 'subset': 'test'},
      "Examples.subset = 'test'; give 'train' or 'holdout'",
    ),
    (
      {'subset': 'holdout'},
      "Examples.subset = 'holdout' needs holdout, the share that is held out",
    ),
    ({'holdout': 1.5}, 'Examples.holdout = 1.5; give a share between 0 and 1'),
    (
      {'shard': (2, 2)},
      'Examples.shard = (2, 2); give (host, hosts), counted from 0',
    ),
  ],
)
def test_arguments_that_exclude_each_other(options, text):
  with refused(text, errors.ConfigError):
    tftrain.data.Examples(tftrain.data.InMemory(np.arange(9)), 2, **options)


def test_more_arguments():
  source = tftrain.data.InMemory(np.arange(9))
  with refused('batch_size 8 does not divide by 3 hosts'):
    tftrain.data.Examples(source, 8, shard=(0, 3))
  for name, size in (('batch_size', 0), ('batch_size', 2.5), ('epochs', 0)):
    with refused(f'{name} must be a whole number of at least 1, got {size}'):
      tftrain.data.Examples(source, **{'batch_size': 2, name: size})
  with refused(
    "TFRecords.on_corrupt = 'raise'; give 'stop' or 'skip'", errors.ConfigError
  ):
    tftrain.data.TFRecords('/none', on_corrupt='raise')
  for batcher in (tftrain.data.Padded, tftrain.data.Packed):
    name = batcher.__name__
    with refused(f"{name}.too_long = 'cut'; choose one of error, truncate...",
                 errors.ConfigError):  # fmt: skip
      batcher(4, too_long='cut')
  with refused(
    'Bucketed.boundaries = [4, 2]; give ascending lengths, such as [16, 32, '
    '64]',
    errors.ConfigError,
  ):
    tftrain.data.Bucketed([4, 2])
  with refused(
    'Packed(length=0, window=1000); both must be at least 1', errors.ConfigError
  ):
    tftrain.data.Packed(0)


def test_what_cannot_be_shared_or_held_out():
  source = tftrain.data.Generator(lambda: range(3))
  with refused(
    'Generator cannot be dealt to 2 hosts; give each host a source of its own'
  ):
    tftrain.data.Examples(source, 2, shard=(0, 2))
  with refused(
    'Generator cannot hold examples out; give training and evaluation a source '
    'each'
  ):
    tftrain.data.Examples(source, 2, holdout=0.5)
  with refused('InMemory: none of its 3 examples are left; hold out another '
               'share, or take fewer hosts'):  # fmt: skip
    tftrain.data.Examples(
      tftrain.data.InMemory(np.arange(3)), 2, holdout=1e-6, subset='holdout'
    )


def test_an_intact_source_has_nothing_to_say(tmp_path):
  path = write(tmp_path / 'a.rec', 5)
  source = tftrain.data.TFRecords(path, _SPEC)
  assert source.diagnose() is None
  assert len(list(source.chunks(2, shuffle_lib.Order()))) == 3

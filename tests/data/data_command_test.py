"""python -m tftrain.data: inspects, checks and repairs TFRecord files."""

import struct

import pytest
import tensorflow as tf

from tests.support import stored_examples
from tftrain.data import __main__


@pytest.fixture
def written(tmp_path):
  """Files of 20 records each, the second with a flipped byte in record 7."""
  good, bad = tmp_path / 'a.rec', tmp_path / 'b.rec'
  stored_examples.write_bare(
    good, stored_examples.all_examples(stored_examples.DENSE, 20)
  )
  stored_examples.write_bare(
    bad, stored_examples.all_examples(stored_examples.DENSE, 20)
  )
  data = bytearray(bad.read_bytes())
  size = struct.unpack_from('<Q', data)[0] + 16
  assert len(data) == 20 * size or len(data) > 7 * size
  byte = 0
  for _ in range(7):
    byte += struct.unpack_from('<Q', data, byte)[0] + 16
  data[byte + 15] ^= 1
  bad.write_bytes(data)
  return good, bad, byte


def test_inspect_shows_the_first_record(written, capsys):
  good, _, _ = written
  assert __main__.main(['inspect', str(good)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    f'{good}: 20 records',
    '  number: int64_list of 1: [0]',
    '  x: float_list of 2: [0.0, 0.0]',
  ]


def test_check_names_the_damaged_record(written, capsys):
  good, bad, byte = written
  assert __main__.main(['check', str(good.parent / '*.rec')]) == 1
  assert capsys.readouterr().out.splitlines() == [
    f'{good}: 20 records',
    f'{bad}: 19 intact records; damaged:',
    f'  record 7 (byte {byte}): the checksum of its data is wrong',
    '1 of 2 files are damaged',
  ]
  assert __main__.main(['check', str(good)]) == 0
  assert capsys.readouterr().out.endswith('0 of 1 files are damaged\n')


@pytest.mark.parametrize('compression', ['', 'GZIP', 'ZLIB'])
def test_repair_writes_what_is_intact(compression, written, tmp_path, capsys):
  good, bad, _ = written
  if compression:
    stored_examples.write_bare(
      bad, stored_examples.all_examples(stored_examples.DENSE, 20), compression
    )
    bad.write_bytes(bad.read_bytes()[:-30])
  to = tmp_path / 'new' / 'repaired'
  assert __main__.main(['repair', str(bad), str(good), '--to', str(to)]) == 0
  assert f'What is intact is in {to}' in capsys.readouterr().out
  assert __main__.main(['check', str(to / '*.rec')]) == 0
  found = tf.data.TFRecordDataset(str(to / bad.name), compression or None)
  found = list(found.as_numpy_iterator())
  expected = [
    stored_examples.serialized(one)
    for one in stored_examples.all_examples(stored_examples.DENSE, 20)
  ]
  if compression:
    assert found == expected[: len(found)]
  else:
    assert found == expected[:7] + expected[8:]
  whole = tf.data.TFRecordDataset(str(to / good.name))
  assert list(whole.as_numpy_iterator()) == expected


def test_the_command_says_what_is_wrong_with_what_it_is_given(
  written, tmp_path, capsys
):
  good, _, _ = written
  assert __main__.main(['inspect', str(tmp_path / 'none*')]) == 2
  assert capsys.readouterr().err.startswith('no file matches ')
  assert __main__.main(['repair', str(good), '--to', str(tmp_path)]) == 2
  assert 'repair writes to another directory' in capsys.readouterr().err
  assert good.read_bytes()
  other = tmp_path / 'other.txt'
  other.write_text('no records at all, but text')
  assert __main__.main(['check', str(other)]) == 2
  assert capsys.readouterr().err.startswith(f'{other} is no TFRecord file')

"""File sources: missing files, mixed compressions, streams that break off."""

import gzip

import pytest

from tests.support import data_errors
import tftrain


@pytest.mark.parametrize(
  'make',
  [
    lambda paths: tftrain.data.TFRecords(paths, data_errors.SPEC),
    tftrain.data.TextLines,
    tftrain.data.Csv,
    tftrain.data.JsonLines,
    tftrain.data.TextFiles,
  ],
)
def test_files_that_are_not_there(make, tmp_path):
  (tmp_path / 'other.txt').write_text('x\n1\n')
  missing = tmp_path / 'train-*'
  with data_errors.refused(
    f'no file matches {missing}: {tmp_path} holds 1 files, such as other.txt'
  ):
    make(missing)
  nowhere = tmp_path / 'none' / 'train-*'
  with data_errors.refused(
    f'no file matches {nowhere}: there is no directory {tmp_path / "none"}'
  ):
    make(str(nowhere))
  (tmp_path / 'void').mkdir()
  with data_errors.refused(
    f'no file matches {tmp_path / "void" / "a"}: {tmp_path / "void"} is empty'
  ):
    make([tmp_path / 'void' / 'a'])
  with data_errors.refused('the list of files is empty; give paths or a glob'):
    make([])
  with data_errors.refused(
    f'{tmp_path} is a directory; give {tmp_path}/* for files'
  ):
    make(tmp_path)
  (tmp_path / 'empty').touch()
  with data_errors.refused(
    f'{tmp_path / "empty"}: file is empty; write or remove it'
  ):
    make(tmp_path / 'empty')


def test_files_of_several_compressions(tmp_path):
  plain = data_errors.write_records(tmp_path / 'a.rec', 3)
  packed = data_errors.write_records(tmp_path / 'b.rec', 3, compression='GZIP')
  with data_errors.refused(
    f'{packed} is GZIP, {plain} is not; make a source of each kind, and a '
    'Mixture'
  ):
    tftrain.data.TFRecords(tmp_path / '*.rec', data_errors.SPEC)
  (tmp_path / 'a.txt').write_text('line')
  (tmp_path / 'b.txt').write_bytes(gzip.compress(b'line'))
  with data_errors.refused(
    'some of the files are gzip and some are not; make a source of each kind, '
    'and a Mixture'
  ):
    tftrain.data.TextLines(tmp_path / '*.txt')


@pytest.mark.parametrize('kind', ['GZIP', 'ZLIB'])
def test_a_compressed_stream_that_breaks_off(kind, tmp_path):
  path = data_errors.write_records(tmp_path / 'a.rec', compression=kind)
  whole = path.read_bytes()
  for length in (len(whole) - 1, len(whole) // 2):
    path.write_bytes(whole[:length])
    with data_errors.refused(
      f'{path} record ...: ...{data_errors.SALVAGE}'
    ) as info:
      tftrain.data.TFRecords(path, data_errors.SPEC)
    assert 'failed with' not in str(info.value)  # TensorFlow's half sentence

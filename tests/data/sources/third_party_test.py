"""Parquet, ArrayRecord and Tfds: files that do not fit."""

import pytest

from tests.support import data_errors
from tests.support import stored_examples
import tftrain


def test_a_parquet_file_that_does_not_fit(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  path = tmp_path / 'a.parquet'
  path.write_text('no parquet')
  with data_errors.refused(f'{path} is no Parquet file: ...; write it again'):
    tftrain.data.Parquet(path)
  rows = [{'x': [n, n], 'name': 'a'} for n in range(57)]
  rows[40]['x'] = [1]
  parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  with data_errors.refused(f"{path} has no column 'y'; it has x, name"):
    tftrain.data.Parquet(path, ['y'])
  with data_errors.refused(
    f'{path} row 40 of all files: x is int64[1], expected int64[2]'
  ):
    data_errors.read(tftrain.data.Parquet(path))


def test_an_array_record_that_does_not_fit(tmp_path):
  module = pytest.importorskip('array_record.python.array_record_module')
  path = tmp_path / 'a.array_record'
  writer = module.ArrayRecordWriter(str(path), 'group_size:1')
  for n in range(57):
    writer.write(
      stored_examples.serialized(
        data_errors.record(n, features=5 if n == 40 else 6)
      )
    )
  writer.close()
  with data_errors.refused(
    f"{path} record 0 holds 6 values of 'x', features says float32[5]"
  ):
    tftrain.data.ArrayRecord(path, {'x': 'float32[5]'})
  with data_errors.refused(
    f"{path} ...record 40 holds 5 values of 'x', features says float32[6]"
  ):
    data_errors.read(tftrain.data.ArrayRecord(path, data_errors.SPEC))


def test_a_tfds_that_is_not_there(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('importlib_resources')
  with data_errors.refused(
    "Tfds('no_such_data', 'train'): ...; prepare it with 'tfds build "
    "--file_format=array_record no_such_data'"
  ):
    tftrain.data.Tfds('no_such_data', 'train', data_dir=str(tmp_path))

"""Csv, JsonLines and TextLines: lines that do not fit."""

import gzip
import json

import pytest

from tests.support import data_errors
import tftrain
from tftrain import errors


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
  with data_errors.refused(f'{path} line 132: {text}'):
    data_errors.read(tftrain.data.Csv(path))
  with data_errors.refused(f'{path} line 132: {text}'):
    data_errors.read(tftrain.data.Csv(path, features))


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
  with data_errors.refused(f"{path} has no column 'length'; it has size, name"):
    tftrain.data.Csv(path, {'length': 'int64'})
  with data_errors.refused(
    "Csv.features['size'] = 'int64[2]'; give 'int64', 'float32' or 'string'",
    errors.ConfigError,
  ):
    tftrain.data.Csv(path, {'size': 'int64[2]'})
  other = tmp_path / 'b.csv'
  other.write_text('name,size\n1,2\n')
  with data_errors.refused(
    f'{other} has the columns name, size, a.csv has size, name; make a source '
    'of each'
  ):
    tftrain.data.Csv(tmp_path / '*.csv')
  path.write_text('size,size\n1,2\n')
  with data_errors.refused(
    f'{path}: two columns have the same name; the header is size, size'
  ):
    tftrain.data.Csv(path)
  path.write_text('size,name\n')
  with data_errors.refused(f'{path}: there is no line below the header'):
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
  with data_errors.refused(f'{path} line 41: {text}'):
    data_errors.read(tftrain.data.JsonLines(path))
  path.write_text(line)
  with data_errors.refused(f'{path} line 1: {text}'):
    tftrain.data.JsonLines(path, {'x': 'int64[2]', 'name': 'string'})


def test_a_gzip_text_that_breaks_off(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(gzip.compress(b'line\n' * 99)[:-9])
  with data_errors.refused(
    f'{path} cannot be read to its end: ...; write it again'
  ):
    tftrain.data.TextLines(path)

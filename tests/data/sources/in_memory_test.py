"""RandomAccess and Npz: items that fail, and files that are none."""

import numpy as np
import pytest

from tests.support import data_errors
import tftrain


class Items:
  """Twelve examples, the one of index 7 as `bad` makes it."""

  def __init__(self, bad):
    self._bad = bad

  def __len__(self):
    return 12

  def __getitem__(self, index):
    return self._bad() if index == 7 else np.zeros([2], np.float32)


@pytest.mark.parametrize('kind', data_errors.BAD_EXAMPLES)
def test_an_item_that_fails_is_named(kind):
  bad, text = data_errors.BAD_EXAMPLES[kind]
  with data_errors.refused(f'Items[7]: ...{text}...'):
    data_errors.read(tftrain.data.RandomAccess(Items(bad)))


def test_what_is_no_random_access():
  with data_errors.refused(
    'generator has no __getitem__; give a list, or a class that has __len__ '
    'and __getitem__, or use Generator'
  ):
    tftrain.data.RandomAccess(n for n in range(3))
  with data_errors.refused('list has 0 examples'):
    tftrain.data.RandomAccess([])


def test_an_npz_that_is_none(tmp_path):
  path = tmp_path / 'a.npz'
  with data_errors.refused(
    f'{path} cannot be read as .npz: ...; write it with np.savez(path, '
    'name=array)'
  ):
    tftrain.data.Npz(path)
  path.write_bytes(b'PK\x03\x04 and so on')
  with data_errors.refused(f'{path} cannot be read as .npz: ...'):
    tftrain.data.Npz(path)
  np.savez(path, x=np.zeros(3), y=np.zeros(4))
  with data_errors.refused(
    'the arrays have 3, 4 rows; give each the same number of examples'
  ):
    tftrain.data.Npz(path)

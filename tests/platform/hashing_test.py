"""Digests: of texts, of single arrays, of named arrays of any size."""

import hashlib

import numpy as np
import pytest

from tftrain.platform import hashing


def test_an_array_has_the_sha256_of_its_bytes():
  array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  expected = hashlib.sha256(array.tobytes()).hexdigest()
  assert hashing.array_digest(array) == expected
  turned = np.asfortranarray(array)
  assert hashing.array_digest(turned) == expected


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ([('a', np.zeros(4))], [('b', np.zeros(4))]),
    ([('a', np.zeros(4))], [('a', np.zeros((2, 2)))]),
    ([('a', np.zeros(2, 'float32'))], [('a', np.zeros(2, 'int32'))]),
    ([('a', np.array(['ab', 'c'], object))],
     [('a', np.array(['a', 'bc'], object))]),
    ([('a', np.zeros(1)), ('b', np.ones(1))],
     [('a', np.ones(1)), ('b', np.zeros(1))]),
  ],
)  # fmt: skip
def test_what_differs_has_another_digest(one, other):
  assert hashing.arrays_digest(one) != hashing.arrays_digest(other)
  assert hashing.arrays_digest(one) == hashing.arrays_digest(iter(one))


def test_bytes_and_texts_of_one_content_are_equal():
  texts = np.array(['ä', 'b'], object)
  encoded = np.array(['ä'.encode(), b'b'], object)
  assert hashing.arrays_digest([('', texts)]) == hashing.arrays_digest(
    [('', encoded)]
  )


def test_large_arrays_are_hashed_in_parts(monkeypatch):
  monkeypatch.setattr(hashing, '_PART_BYTES', 16)
  array = np.arange(40, dtype=np.uint8)
  expected = hashlib.sha256(b'x uint8[40]\n')
  for start in (0, 16, 32):
    part = array[start : start + 16].tobytes()
    expected.update(hashlib.sha256(part).digest())
  found = hashing.arrays_digest([('x', array)])
  assert found == expected.hexdigest()


def test_values_are_hashed_as_sorted_json():
  one = hashing.value_digest({'a': 1, 'b': [None]})
  assert one == hashing.value_digest({'b': [None], 'a': 1})
  assert one == hashing.text_digest('{"a": 1, "b": [null]}')

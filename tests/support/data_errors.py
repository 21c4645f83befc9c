"""Errors of data, expected to the letter, and files to cause them."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.support import stored_examples
import tftrain
from tftrain import errors

SPEC = {'x': 'float32[6]', 'label': 'int64'}
SALVAGE = (
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


def write_records(path, count=57, changed=None, compression=''):
  """A file of records; `changed`: number -> another example, or bytes."""
  changed = changed or {}
  with tf.io.TFRecordWriter(str(path), compression) as writer:
    for number in range(count):
      one = changed.get(number, record(number))
      writer.write(
        one if isinstance(one, bytes) else stored_examples.serialized(one)
      )
  return path


def read(source, **options):
  """Reads all of it."""
  options = {'training': False, **options}
  pipeline = tftrain.data.Examples(source, 8, **options)
  with tftrain.data.explained(pipeline):
    for _ in pipeline.dataset(0):
      pass


def broken():
  raise KeyError('no such image')


BAD_EXAMPLES = {
  'raises': (broken, "'no such image'"),
  'shape': (lambda: np.zeros([3], np.float32), 'is float32[3], expected'),
  'dtype': (lambda: 'text', 'is <U4[], expected'),
  'nothing': (lambda: None, 'is object[], expected'),
}

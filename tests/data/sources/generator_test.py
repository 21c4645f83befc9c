"""Generator: examples that fail, and functions that are none."""

import numpy as np
import pytest

from tests.support import data_errors
import tftrain


@pytest.mark.parametrize('kind', data_errors.BAD_EXAMPLES)
def test_an_example_of_a_generator_that_fails_is_named(kind):
  bad, text = data_errors.BAD_EXAMPLES[kind]

  def numbers():
    for n in range(12):
      yield bad() if n == 5 else np.zeros([2], np.float32)

  with data_errors.refused(f'...numbers() example 5: ...{text}...'):
    data_errors.read(tftrain.data.Generator(numbers))


def test_a_generator_that_raises_between_examples_is_named():
  def numbers():
    yield from range(5)
    raise OSError('disk gone')

  with data_errors.refused('...numbers() example 5: disk gone'):
    data_errors.read(tftrain.data.Generator(numbers))


def test_what_is_no_generator_function():
  with data_errors.refused(
    'Generator takes a function, got generator; a generator itself can be read '
    'only once'
  ):
    tftrain.data.Generator(n for n in range(3))
  with data_errors.refused('...() yields 0 examples'):
    tftrain.data.Generator(lambda: [])
  for size in (1, 2, 9):
    once = iter(range(size))
    with data_errors.refused(
      '...() yields nothing the second time; make what it reads inside of it'
    ):
      tftrain.data.Generator(lambda once=once: once)

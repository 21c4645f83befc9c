"""Mixture: proportions, passes, resume, and parts that do not match."""

import random

import numpy as np
import pytest

from tests.support import data_errors
from tests.support import stored_examples
import tftrain
from tftrain import errors


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
  return stored_examples.Stored('mixture', tmp_path_factory.mktemp('mixture'))


def drawn_from(mixture, count, *, bounds, seed=1, step=0):
  """How many of `count` examples are of each part."""
  pipeline = tftrain.data.Examples(mixture, 8)
  batches = stored_examples.only_batches(
    pipeline, count // 8, seed=seed, step=step
  )
  numbers = np.concatenate([batch['number'] for batch in batches])
  return np.histogram(numbers, bounds)[0]


@pytest.mark.slow
def test_a_mixture_resumes_anywhere_and_each_seed_is_another(mixture):
  drawn = random.Random(0)
  for step in (drawn.randint(*span) for span in ((1, 7), (8, 14), (15, 22))):
    again = stored_examples.only_batches(mixture.training, 24 - step, step=step)
    assert list(map(stored_examples.rows, again)) == list(
      map(stored_examples.rows, mixture.batches[step:])
    )
  other = stored_examples.only_batches(mixture.training, 24, seed=2)
  assert stored_examples.flat(other) != stored_examples.flat(mixture.batches)
  far = tftrain.data.Examples(mixture.source, 5, shuffle=stored_examples.WINDOW)
  whole = stored_examples.only_batches(far, 70)  # beyond a round of 256
  tail = stored_examples.only_batches(far, 9, step=61)
  assert list(map(stored_examples.rows, tail)) == list(
    map(stored_examples.rows, whole[61:])
  )


@pytest.mark.slow
def test_a_mixture_has_its_proportions_in_every_round_to_one_example():
  parts = {
    'a': stored_examples.numbered(0, 1000),
    'b': stored_examples.numbered(1000, 10),
  }
  mixture = tftrain.data.Mixture(parts, {'a': 3, 'b': 1})
  # Rounds are of 256 examples. `b` ends 25 times meanwhile.
  for number in range(4):
    counts = drawn_from(mixture, 256, bounds=[0, 1000, 1010], step=32 * number)
    assert abs(counts - [192, 64]).max() <= 1
  far = drawn_from(mixture, 256, bounds=[0, 1000, 1010], step=32 * 100_000)
  assert abs(far - [192, 64]).max() <= 1


def test_a_mixture_has_each_example_of_a_part_once_per_pass_of_that_part():
  parts = {
    'a': stored_examples.numbered(0, 1000),
    'b': stored_examples.numbered(1000, 10),
  }
  pipeline = tftrain.data.Examples(
    tftrain.data.Mixture(parts, {'a': 3, 'b': 1}), 8
  )
  batches = stored_examples.only_batches(pipeline, 128)
  numbers = np.concatenate([batch['number'] for batch in batches])
  small = numbers[numbers >= 1000]
  assert len(small) == 256
  for begin in range(0, 250, 10):
    assert sorted(small[begin : begin + 10]) == list(range(1000, 1010))
  large = numbers[numbers < 1000]
  assert len(set(large)) == len(large) == 768


def test_a_mixture_without_weights_takes_as_many_as_there_are():
  parts = {
    'a': stored_examples.numbered(0, 96),
    'b': stored_examples.numbered(100, 32),
  }
  bounds = [0, 100, 200]
  mixture = tftrain.data.Mixture(parts)
  assert drawn_from(mixture, 256, bounds=bounds).tolist() == [192, 64]
  # 96 ** 0.5 : 32 ** 0.5 is 1 : 0.577
  flat_mixture = tftrain.data.Mixture(parts, temperature=2)
  counts = drawn_from(flat_mixture, 256, bounds=bounds)
  assert counts.tolist() == [162, 94]
  alike = tftrain.data.Mixture(parts, temperature=1e6)
  assert drawn_from(alike, 256, bounds=bounds).tolist() == [128, 128]


def test_a_part_of_weight_zero_is_left_out():
  parts = {
    'a': stored_examples.numbered(0, 9),
    'b': stored_examples.numbered(100, 9),
  }
  mixture = tftrain.data.Mixture(parts, {'a': 0, 'b': 1})
  assert drawn_from(mixture, 64, bounds=[0, 100, 200]).tolist() == [0, 64]


@pytest.mark.slow
def test_a_mixture_may_be_filtered_and_resumed():
  parts = {
    'a': stored_examples.numbered(0, 30),
    'b': stored_examples.numbered(100, 9),
  }
  pipeline = tftrain.data.Examples(
    tftrain.data.Mixture(parts),
    4,
    filter=lambda one: one['number'] % 3 == 0,
    shuffle=stored_examples.WINDOW,
  )
  stored_examples.assert_resumes(pipeline, [2, 7, 15], 20)


def test_a_mixture_may_be_mapped():
  parts = {
    'a': tftrain.data.InMemory(np.zeros(9)),
    'b': tftrain.data.InMemory(np.ones(9)),
  }
  data = tftrain.data.Examples(
    tftrain.data.Mixture(parts), 8, map=lambda x: x + 1
  )
  (batch,) = data.peek(1)
  assert set(batch) == {1.0, 2.0}


def test_a_mixture_of_what_does_not_go_together():
  x, y = (
    tftrain.data.InMemory(np.arange(9)),
    tftrain.data.InMemory(np.arange(9.0)),
  )
  with data_errors.refused(
    "Mixture: examples of 'y' are TensorSpec(shape=(), dtype=tf.float64, "
    "name=None), those of 'x' TensorSpec(shape=(), dtype=tf.int64, name=None); "
    'make them alike with tftrain.data.Mapped'
  ):
    tftrain.data.Mixture({'x': x, 'y': y})
  with data_errors.refused(
    'Mixture.weights is of x, z, the parts are x, y; give each a weight',
    errors.ConfigError,
  ):
    tftrain.data.Mixture({'x': x, 'y': x}, {'x': 1, 'z': 2})
  with data_errors.refused(
    'Mixture.parts is empty; give {name: source}', errors.ConfigError
  ):
    tftrain.data.Mixture({})
  for weights in ({'x': -1, 'y': 2}, {'x': 0, 'y': 0}):
    with data_errors.refused(
      'Mixture.weights = ...; give numbers of at least 0, not all 0',
      errors.ConfigError,
    ):
      tftrain.data.Mixture({'x': x, 'y': x}, weights)
  with data_errors.refused(
    'Mixture.temperature = 0; give a number above 0', errors.ConfigError
  ):
    tftrain.data.Mixture({'x': x}, temperature=0)
  with data_errors.refused(
    "Mixture: how many examples 'x' has is not known; give weights"
  ):
    tftrain.data.Mixture({'x': tftrain.data.Generator(lambda: range(3))})
  for options in ({'training': False}, {'epochs': 2}):
    with data_errors.refused(
      'a Mixture has no epochs: it goes on for ever; give the run steps, and '
      'evaluate on its parts'
    ):
      tftrain.data.Examples(tftrain.data.Mixture({'x': x}), 2, **options)

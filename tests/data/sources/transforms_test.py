"""Functions on examples: map, filter, select and map_batch."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import data_errors
from tests.support import stored_examples
import tftrain


@pytest.mark.parametrize(
  'kind',
  stored_examples.some_slow(
    ['records', 'memory', 'generator'], ['memory', 'generator']
  ),
)
@pytest.mark.slow
def test_the_seed_of_a_map_is_another_in_each_epoch_and_always_the_same(
  kind, tmp_path
):
  source, _ = stored_examples.SOURCES[kind](tmp_path)
  pipeline = tftrain.data.Examples(
    source,
    5,
    map=stored_examples.shaken,
    shuffle=stored_examples.WINDOW,
    batcher=tftrain.data.Ragged(),
  )
  batches = stored_examples.only_batches(pipeline, 15)
  noise = np.concatenate([batch['noise'] for batch in batches])
  assert len(set(noise.tolist())) == 75
  assert 0.3 < noise.mean() < 0.7
  assert stored_examples.flat(
    stored_examples.only_batches(pipeline, 15)
  ) == stored_examples.flat(batches)
  assert stored_examples.flat(
    stored_examples.only_batches(pipeline, 15, seed=2)
  ) != stored_examples.flat(batches)
  stored_examples.assert_resumes(pipeline, [2, 9, 13], 15)


def test_a_map_may_be_python_with_ifs():
  def function(one):
    if one['number'] % 2 == 0:
      x = one['x'] + 100.0
    else:
      x = one['x']
    return {'x': x, 'number': one['number']}

  source = tftrain.data.InMemory(
    stored_examples.stacked(stored_examples.all_examples(stored_examples.DENSE))
  )
  pipeline = tftrain.data.Examples(source, 37, map=function, training=False)
  (batch,) = pipeline.peek()
  expected = stored_examples.stacked(
    stored_examples.all_examples(stored_examples.DENSE)
  )['x']
  expected[::2] += 100
  np.testing.assert_array_equal(batch['x'], expected)


def test_maps_and_mapped_of_tuples_are_given_the_tuple():
  x, number = np.arange(6.0), np.arange(6)
  source = tftrain.data.InMemory((x, number))
  swapped = lambda pair: (pair[1], pair[0])
  for pipeline in (
    tftrain.data.Examples(source, 6, map=swapped, training=False),
    tftrain.data.Examples(
      tftrain.data.Mapped(source, swapped), 6, training=False
    ),
  ):
    ((first, second),) = pipeline.peek()
    np.testing.assert_array_equal(first, number)
    np.testing.assert_array_equal(second, x)


def test_select_makes_a_tuple_and_map_batch_comes_last():
  source = tftrain.data.InMemory(
    stored_examples.stacked(stored_examples.all_examples(stored_examples.DENSE))
  )
  pipeline = tftrain.data.Examples(
    source,
    5,
    training=False,
    map=lambda one: {**one, 'twice': 2 * one['number']},
    select=('twice', 'number'),
    map_batch=lambda batch: (batch[0] + 1, batch[1]),
  )
  found = pipeline.peek(8)
  assert all(isinstance(batch, tuple) for batch in found)
  np.testing.assert_array_equal(
    np.concatenate([batch[0] for batch in found]), 2 * np.arange(37) + 1
  )
  np.testing.assert_array_equal(
    np.concatenate([batch[1] for batch in found]), np.arange(37)
  )


def test_a_filter_that_drops_everything():
  source = tftrain.data.InMemory(np.arange(57))
  with data_errors.refused(
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
  with data_errors.refused(text):
    tftrain.data.Examples(source, 8, map=lambda x: (x, draw()))
  with data_errors.refused(text):
    tftrain.data.Examples(source, 8, map=lambda x, seed: (x, draw()))
  accepted = lambda x, seed: x + tf.random.stateless_uniform([], seed)
  tftrain.data.Examples(source, 8, map=accepted)


@pytest.mark.parametrize('where', ['filter', 'map_batch', 'mapped'])
def test_other_functions_that_draw_from_a_state_are_refused_too(where):
  source = tftrain.data.InMemory(np.arange(9.0))
  draw = lambda x: x + tf.random.uniform([], dtype=tf.float64)
  with data_errors.refused('...draws random numbers with RandomUniform...'):
    if where == 'mapped':
      tftrain.data.Examples(tftrain.data.Mapped(source, draw), 8)
    else:
      function = draw if where == 'map_batch' else lambda x: draw(x) > 3
      tftrain.data.Examples(source, 8, **{where: function})


def test_a_select_of_what_is_not_there():
  source = tftrain.data.InMemory({'x': np.arange(9), 'y': np.arange(9)})
  with data_errors.refused("Examples.select: there is no 'z'; there are x, y"):
    tftrain.data.Examples(source, 8, select=('x', 'z'))

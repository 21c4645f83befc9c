"""Cursors: pipelines that drop or move examples resume at the same example."""

import random

import pytest

from tests.support import stored_examples
import tftrain

_COMBINATIONS = {
  'filter': {'filter': stored_examples.long_enough},
  'map and filter': {
    'filter': stored_examples.long_enough,
    'map': stored_examples.shaken,
  },
  'bucketed': {'batcher': tftrain.data.Bucketed([2, 4, 7], window=3)},
  'packed': {'batcher': tftrain.data.Packed(16, window=11)},
  'filter and bucketed': {
    'filter': stored_examples.long_enough,
    'batcher': tftrain.data.Bucketed([4, 7], window=2),
  },
  'map, filter and packed': {
    'filter': stored_examples.long_enough,
    'map': lambda one: {'ids': one['ids']},
    'batcher': tftrain.data.Packed(16, window=11),
  },
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'epochs'),
  [
    ('filter and bucketed', None),
    *(
      pytest.param(name, epochs, marks=pytest.mark.slow)
      for name, epochs in (
        ('filter', None),
        ('filter', 3),
        ('map and filter', None),
        ('map and filter', 3),
        ('packed', None),
        ('bucketed', None),
        ('bucketed', 3),
        ('packed', 3),
        ('filter and bucketed', 3),
        ('map, filter and packed', 3),
        ('map, filter and packed', None),
      )
    ),
  ],
)
def test_what_drops_or_moves_examples_resumes_by_its_cursor(
  name, epochs, records
):
  options = dict(_COMBINATIONS[name])
  if name == 'packed':
    options['map'] = lambda one: {'ids': one['ids']}
  pipeline = records.pipeline(epochs=epochs, **options)
  assert pipeline.has_cursor
  whole = stored_examples.run(pipeline, None if epochs else 24)
  drawn = random.Random(name)
  stored_examples.assert_resumes(
    pipeline,
    sorted(drawn.sample(range(1, len(whole) - 1), 3)),
    None if epochs else 24,
  )


def test_a_filter_keeps_what_it_says_once_in_every_epoch(records):
  pipeline = records.pipeline(filter=stored_examples.long_enough)
  kept = [one for one in records.examples if len(one['ids']) > 2]
  found = stored_examples.flat(stored_examples.only_batches(pipeline, 12))
  assert sorted(found[: len(kept)]) == sorted(map(stored_examples.key, kept))
  assert sorted(found[len(kept) :][: len(kept)]) == sorted(
    map(stored_examples.key, kept)
  )
  assert found[: len(kept)] != found[len(kept) :][: len(kept)]
  ordered = records.pipeline(filter=stored_examples.long_enough, training=False)
  assert stored_examples.flat(stored_examples.only_batches(ordered)) == list(
    map(stored_examples.key, kept)
  )
  assert ordered.num_examples is None and ordered.num_steps is None

"""Examples: order, resume, caches and options, on every source."""

import random

import numpy as np
import pytest
import tensorflow as tf

from tests.support import data_errors
from tests.support import stored_examples
import tftrain
from tftrain import errors

# What they do is also done by others that stay.
_SLOW = (
  'zlib records',
  'bare records',
  'bare zlib records',
  'gzip lines',
  'texts',
  'npz',
)


@pytest.fixture(
  scope='module',
  params=stored_examples.some_slow(stored_examples.SOURCES, _SLOW),
)
def stored(request, tmp_path_factory):
  return stored_examples.Stored(
    request.param, tmp_path_factory.mktemp('stored')
  )


def test_each_example_comes_once_in_every_epoch_of_training(stored):
  found = stored_examples.flat(stored.batches)
  assert all(
    len(stored_examples.rows(batch)) == stored_examples.BATCH
    for batch in stored.batches
  )
  expected = sorted(stored_examples.key(one) for one in stored.examples)
  assert len(set(expected)) == stored_examples.SIZE
  for epoch in range(3):
    assert (
      sorted(found[epoch * stored_examples.SIZE :][: stored_examples.SIZE])
      == expected
    )


def test_an_evaluation_has_all_examples_in_order_and_a_smaller_last_batch(
  stored,
):
  evaluation = stored.pipeline(training=False)
  batches = stored_examples.only_batches(evaluation)
  assert stored_examples.flat(batches) == [
    stored_examples.key(one) for one in stored.examples
  ]
  assert [len(stored_examples.rows(batch)) for batch in batches] == [5] * 7 + [
    2
  ]
  known = stored.name != 'generator'
  assert evaluation.num_examples == (stored_examples.SIZE if known else None)
  assert evaluation.num_steps == (8 if known else None)
  assert not evaluation.repeats


def test_a_resumed_stream_is_the_tail_of_the_whole_one(stored):
  assert not stored.training.has_cursor
  drawn = random.Random(stored.name)
  spans = ((1, 7), (7, 14), (15, 22))  # in the first epoch, the second, beyond
  for step in (drawn.randint(*span) for span in spans):
    again = stored_examples.only_batches(stored.training, 24 - step, step=step)
    assert list(map(stored_examples.rows, again)) == list(
      map(stored_examples.rows, stored.batches[step:])
    )


def test_seeds_and_epochs_have_orders_of_their_own(stored):
  found = stored_examples.flat(stored.batches)
  first, second = (
    found[: stored_examples.SIZE],
    found[stored_examples.SIZE : 2 * stored_examples.SIZE],
  )
  assert first != second
  assert first != [stored_examples.key(one) for one in stored.examples]
  other = stored_examples.flat(
    stored_examples.only_batches(stored.training, 8, seed=2)
  )[: stored_examples.SIZE]
  assert sorted(other) == sorted(first)
  assert other != first


def test_specs_say_what_the_batches_are(stored):
  spec = stored.training.element_spec
  tf.nest.assert_same_structure(spec, stored.batches[0])
  for leaf, batch in zip(
    tf.nest.flatten(spec), tf.nest.flatten(stored.batches[0]), strict=True
  ):
    assert leaf.is_compatible_with(batch)
    assert leaf.shape.rank is not None


@pytest.mark.parametrize(
  ('name', 'remainder'),
  [
    ('memory', 'drop'),
    pytest.param('records', 'keep', marks=pytest.mark.slow),
    pytest.param('records', 'drop', marks=pytest.mark.slow),
    pytest.param('memory', 'keep', marks=pytest.mark.slow),
  ],
)
def test_epochs_end_the_data_and_batches_run_on_over_their_ends(
  name, remainder, tmp_path
):
  source, found = stored_examples.SOURCES[name](tmp_path)
  for function in (None, lambda one: one):
    pipeline = tftrain.data.Examples(
      source,
      5,
      epochs=2,
      remainder=remainder,
      map=function,
      batcher=tftrain.data.Ragged(),
    )
    batches = stored_examples.only_batches(pipeline)
    sizes = [len(stored_examples.rows(batch)) for batch in batches]
    assert sizes == [5] * 14 + [4] * (remainder == 'keep')
    assert pipeline.num_steps == len(sizes)
    if remainder == 'keep':
      twice = sorted(2 * [stored_examples.key(one) for one in found])
      assert sorted(stored_examples.flat(batches)) == twice
    stored_examples.assert_resumes(pipeline, [5, 11])


@pytest.mark.parametrize('kind', ['records', 'gzip lines', 'memory'])
def test_a_cache_holds_the_same_examples(kind, tmp_path):
  source, found = stored_examples.SOURCES[kind](tmp_path)
  options = {'batcher': tftrain.data.Ragged(), 'training': False}
  expected = [stored_examples.key(one) for one in found]
  cached = tftrain.data.Examples(source, 5, cache=True, **options)
  for path in tmp_path.iterdir():
    path.unlink()  # nothing is read again
  assert stored_examples.flat(stored_examples.only_batches(cached)) == expected


@pytest.mark.parametrize('kind', ['memory', 'access'])
def test_a_cache_of_what_is_found_by_index_changes_no_batch(kind, tmp_path):
  source, _ = stored_examples.SOURCES[kind](tmp_path)
  found = [
    stored_examples.flat(stored_examples.only_batches(
      tftrain.data.Examples(
        source,
        5,
        cache=cache,
        map=stored_examples.shaken,
        batcher=tftrain.data.Ragged(),
      ),
      12,
    ))
    for cache in (False, True)
  ]  # fmt: skip
  assert found[0] == found[1]


@pytest.mark.slow
def test_threads_memory_and_prefetch_change_no_batch(records):
  plain = stored_examples.flat(
    stored_examples.only_batches(
      records.pipeline(map=stored_examples.shaken), 9
    )
  )
  for options in (
    {'threads': 1},
    {'ram_budget_gb': 0.1},
    {'prefetch': 0},
  ):
    pipeline = records.pipeline(map=stored_examples.shaken, **options)
    assert (
      stored_examples.flat(stored_examples.only_batches(pipeline, 9)) == plain
    )


def test_pipelines_describe_themselves(records):
  lines = records.pipeline(training=False).describe().splitlines()
  assert lines[:2] == ['examples: 37', 'steps: 8']
  lines = records.training.describe().splitlines()
  assert lines[:2] == ['examples: 37', 'steps: without end']
  assert "'ids': 'int64[5,?]'" in lines[2]


def test_what_is_no_source():
  text = (
    'Examples takes a source such as TFRecords or InMemory, got {}; arrays go '
    'into Arrays, a dataset of batches into DatasetPipeline'
  )
  with data_errors.refused(text.format('_RangeDataset')):
    tftrain.data.Examples(tf.data.Dataset.range(9), 2)
  with data_errors.refused(text.format('ndarray')):
    tftrain.data.Examples(np.arange(9), 2)
  with data_errors.refused(text.format('str')):
    tftrain.data.Examples('/data/train-*', 2)


@pytest.mark.parametrize(
  ('options', 'text'),
  [
    (
      {'remainder': 'skip'},
      "Examples.remainder = 'skip'; give 'keep', 'drop' or 'pad'",
    ),
    (
      {'holdout': 0.5, 'subset': 'test'},
      "Examples.subset = 'test'; give 'train' or 'holdout'",
    ),
    (
      {'subset': 'holdout'},
      "Examples.subset = 'holdout' needs holdout, the share that is held out",
    ),
    ({'holdout': 1.5}, 'Examples.holdout = 1.5; give a share between 0 and 1'),
    (
      {'shard': (2, 2)},
      'Examples.shard = (2, 2); give (host, hosts), counted from 0',
    ),
  ],
)
def test_arguments_that_exclude_each_other(options, text):
  with data_errors.refused(text, errors.ConfigError):
    tftrain.data.Examples(tftrain.data.InMemory(np.arange(9)), 2, **options)


def test_more_arguments():
  source = tftrain.data.InMemory(np.arange(9))
  with data_errors.refused('batch_size 8 does not divide by 3 hosts'):
    tftrain.data.Examples(source, 8, shard=(0, 3))
  for name, size in (('batch_size', 0), ('batch_size', 2.5), ('epochs', 0)):
    with data_errors.refused(
      f'{name} must be a whole number of at least 1, got {size}'
    ):
      tftrain.data.Examples(source, **{'batch_size': 2, name: size})
  with data_errors.refused(
    "TFRecords.on_corrupt = 'raise'; give 'stop' or 'skip'", errors.ConfigError
  ):
    tftrain.data.TFRecords('/none', on_corrupt='raise')
  for batcher in (tftrain.data.Padded, tftrain.data.Packed):
    name = batcher.__name__
    with data_errors.refused(
      f"{name}.too_long = 'cut'; choose one of error, truncate...",
      errors.ConfigError,
    ):
      batcher(4, too_long='cut')
  with data_errors.refused(
    'Bucketed.boundaries = [4, 2]; give ascending lengths, such as [16, 32, '
    '64]',
    errors.ConfigError,
  ):
    tftrain.data.Bucketed([4, 2])
  with data_errors.refused(
    'Packed(length=0, window=1000); both must be at least 1', errors.ConfigError
  ):
    tftrain.data.Packed(0)

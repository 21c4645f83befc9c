"""Sources and what Examples makes of them: order, resume, batchers, weights.

Every source is asked for the same things, by one table; what is expected is
what was put into the files.
"""

import contextlib
import gzip
import itertools
import json
import random
import socket
import struct

import numpy as np
import pytest
import tensorflow as tf

import tftrain
from tftrain import errors
from tftrain.data import __main__
from tftrain.data.sources import feature_spec
from tftrain.data.sources import shuffle as shuffle_lib

_SIZE, _BATCH, _WINDOW = 37, 5, 8
_SPEC = {'number': 'int64', 'x': 'float32[2]', 'ids': 'int64[?]'}
_DENSE = {'number': 'int64', 'x': 'float32[2]'}


def example(number):
  """The example of that number; its `ids` has 1 to 7 entries, all its own."""
  return {
    'number': np.int64(number),
    'x': np.array([number / 3, -number], np.float32),
    'ids': 10 * number + np.arange(1 + number % 7),
  }


def example_of(names, number):
  return {name: example(number)[name] for name in names}


def all_examples(names=_SPEC, size=_SIZE):
  return [example_of(names, number) for number in range(size)]


def key(one):
  """All of an example, dtypes and shapes too, as something that compares."""
  leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(one)]
  return repr([
    ('text' if leaf.dtype.kind in 'OSU' else leaf.dtype.name, leaf.tolist())
    for leaf in leaves
  ])  # fmt: skip


def rows(batch):
  """The keys of a batch's examples."""
  leaves = [
    np.split(leaf.flat_values.numpy(), leaf.row_splits.numpy()[1:-1])
    if isinstance(leaf, tf.RaggedTensor)
    else np.asarray(leaf)
    for leaf in tf.nest.flatten(batch)
  ]
  return [key(parts) for parts in zip(*leaves, strict=True)]


def flat(batches):
  return [row for batch in batches for row in rows(batch)]


def run(pipeline, count=None, *, seed=1, step=0, cursor=None):
  """(batch, cursor) of each step from `step` on."""
  where = {} if cursor is None else {'cursor': cursor}
  with tftrain.data.explained(pipeline):
    dataset = pipeline.dataset(seed, step, **where)
    found = list(dataset if count is None else dataset.take(count))
  if pipeline.has_cursor:
    return [(batch, after.numpy().tolist()) for batch, after in found]
  return [(batch, None) for batch in found]


def only_batches(pipeline, count=None, **where):
  return [batch for batch, _ in run(pipeline, count, **where)]


def assert_resumes(pipeline, steps, count=None):
  """From each of `steps` on it is as if nothing had been interrupted."""
  whole = run(pipeline, count)
  for step in steps:
    assert 0 < step < len(whole) - 1
    rest = None if count is None else count - step
    again = run(pipeline, rest, step=step, cursor=whole[step - 1][1])
    assert [rows(b) for b, _ in again] == [rows(b) for b, _ in whole[step:]]
    assert [c for _, c in again] == [c for _, c in whole[step:]]


# Each makes (source, its examples in the order they are stored).


def dealt(examples, shards):
  """The order of what was dealt to files in turn."""
  return [one for shard in range(shards) for one in examples[shard::shards]]


def serialized(one):
  def feature(value):
    flat = np.reshape(value, -1)
    if flat.dtype.kind in 'iu':
      return tf.train.Feature(int64_list=tf.train.Int64List(value=flat))
    return tf.train.Feature(float_list=tf.train.FloatList(value=flat))

  features = {name: feature(value) for name, value in one.items()}
  message = tf.train.Example(features=tf.train.Features(feature=features))
  return message.SerializeToString()


def write_bare(path, examples, compression=''):
  with tf.io.TFRecordWriter(str(path), compression) as writer:
    for one in examples:
      writer.write(serialized(one))


def make_records(folder, compression=''):
  found = all_examples()
  tftrain.data.write_records(
    folder / 'train', found, _SPEC, shards=3, compression=compression
  )
  return tftrain.data.TFRecords(folder / 'train-*'), dealt(found, 3)


def make_bare(folder, compression=''):
  found = all_examples()
  write_bare(folder / 'a.rec', found[:10], compression)
  write_bare(folder / 'b.rec', found[10:], compression)
  return tftrain.data.TFRecords(folder / '*.rec', _SPEC), found


def make_csv(folder):
  found = [
    {
      'number': np.int64(n),
      'ratio': np.float32(n / 4),
      'name': f'n,{n}'.encode(),
    }
    for n in range(_SIZE)
  ]
  for name, part in (('a', found[:20]), ('b', found[20:])):
    lines = [f'{r["number"]},{r["ratio"]},"n,{r["number"]}"' for r in part]
    text = '\n'.join(['number,ratio,name', *lines])
    (folder / f'{name}.csv').write_text(text)
  return tftrain.data.Csv(folder / '*.csv'), found


def make_json(folder):
  found = all_examples()
  for name, part in (('a', found[:20]), ('b', found[20:])):
    lines = [
      json.dumps({n: v.tolist() for n, v in one.items()}) for one in part
    ]
    (folder / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
  return tftrain.data.JsonLines(folder / '*.jsonl', _SPEC), found


def make_lines(folder, opened=open):
  for name, part in (('a', range(20)), ('b', range(20, _SIZE))):
    with opened(folder / f'{name}.txt', 'wb') as file:
      file.write('\n'.join(f'line {n} é' for n in part).encode())
  found = [{'text': f'line {n} é'.encode()} for n in range(_SIZE)]
  return tftrain.data.TextLines(folder / '*.txt'), found


def make_texts(folder):
  for n in range(_SIZE):
    (folder / f'{n:03d}.txt').write_text(f'two\nlines {n}')
  found = [{'text': f'two\nlines {n}'.encode()} for n in range(_SIZE)]
  return tftrain.data.TextFiles(folder / '*.txt'), found


def tiles():
  """Pieces of two photographs, uint8 `[8, 8, 3]`, no two alike."""
  datasets = pytest.importorskip('sklearn.datasets')
  for photograph in datasets.load_sample_images().images:
    corner = photograph[200:264, 200:264]
    yield [
      corner[y : y + 8, x : x + 8]
      for y in range(0, 64, 8)
      for x in range(0, 64, 8)
    ]


def make_images(folder):
  found = []
  for label, pieces in enumerate(tiles()):
    (folder / 'ba'[::-1][label]).mkdir()
    for n, piece in enumerate(pieces[: 18 + label]):
      data = tf.io.encode_png(piece).numpy()
      (folder / 'ab'[label] / f'{n:02d}.png').write_bytes(data)
      found.append({'image': piece, 'label': np.int64(label)})
  source = tftrain.data.ImageFolder(folder)
  assert source.class_names == ['a', 'b']
  return source, found


def stacked(examples):
  return {
    name: np.stack([one[name] for one in examples]) for name in examples[0]
  }


def make_memory(folder):
  del folder
  found = all_examples()
  ids = tf.ragged.constant(
    [one['ids'].tolist() for one in found], tf.int64, row_splits_dtype=tf.int64
  )
  return tftrain.data.InMemory(
    {**stacked(all_examples(_DENSE)), 'ids': ids}
  ), found


def make_npz(folder):
  found = all_examples(_DENSE)
  np.savez(folder / 'arrays.npz', **stacked(found))
  return tftrain.data.Npz(folder / 'arrays.npz'), found


def make_access(folder):
  del folder
  return tftrain.data.RandomAccess(all_examples(), _SPEC), all_examples()


def make_generator(folder):
  del folder

  def read():
    for number in range(_SIZE):
      yield example(number)

  return tftrain.data.Generator(read, _SPEC), all_examples()


def negated(one):
  return {**one, 'x': -one['x']}


def make_mapped(folder):
  source, found = make_records(folder)
  return tftrain.data.Mapped(source, negated), [negated(one) for one in found]


def make_parquet(folder):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  found = all_examples()
  for name, part in (('a', found[:20]), ('b', found[20:])):
    table = pyarrow.Table.from_pylist([
      {n: v.tolist() for n, v in one.items()} for one in part
    ])  # fmt: skip
    parquet.write_table(table, folder / f'{name}.parquet', row_group_size=6)
  return tftrain.data.Parquet(folder / '*.parquet', features=_SPEC), found


def make_array_record(folder):
  module = pytest.importorskip('array_record.python.array_record_module')
  found = all_examples()
  for name, part in (('a', found[:20]), ('b', found[20:])):
    path = folder / f'{name}.array_record'
    writer = module.ArrayRecordWriter(str(path), 'group_size:1')
    for one in part:
      writer.write(serialized(one))
    writer.close()
  return tftrain.data.ArrayRecord(folder / '*.array_record', _SPEC), found


def make_tfds(folder):
  tfds = pytest.importorskip('tensorflow_datasets')
  pytest.importorskip('importlib_resources')  # of etils, which TFDS uses

  class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        disable_shuffling=True,
        features=tfds.features.FeaturesDict({
          'number': np.int64,
          'x': tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }),
      )  # fmt: skip

    def _split_generators(self, manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(all_examples(_DENSE))

  builder = Tiny(data_dir=str(folder), file_format='array_record')
  builder.download_and_prepare()
  source = tftrain.data.Tfds('tiny', 'train', data_dir=str(folder))
  return source, all_examples(_DENSE)


def opposite(one):
  return {**one, 'number': -one['number'] - 1}


def make_mixture(folder):
  large, found = make_records(folder)
  small = tftrain.data.InMemory(stacked(all_examples(_DENSE, 7)))
  large = tftrain.data.Mapped(large, lambda one: {n: one[n] for n in _DENSE})
  small = tftrain.data.Mapped(small, opposite)
  return tftrain.data.Mixture(
    {'large': large, 'small': small}, {'large': 2, 'small': 1}
  ), found


_SOURCES = {
  'records': make_records,
  'gzip records': lambda folder: make_records(folder, 'GZIP'),
  'zlib records': lambda folder: make_records(folder, 'ZLIB'),
  'bare records': make_bare,
  'bare gzip records': lambda folder: make_bare(folder, 'GZIP'),
  'bare zlib records': lambda folder: make_bare(folder, 'ZLIB'),
  'csv': make_csv,
  'json': make_json,
  'lines': make_lines,
  'gzip lines': lambda folder: make_lines(folder, gzip.open),
  'texts': make_texts,
  'images': make_images,
  'memory': make_memory,
  'npz': make_npz,
  'access': make_access,
  'generator': make_generator,
  'mapped': make_mapped,
  'parquet': make_parquet,
  'array record': make_array_record,
  'tfds': make_tfds,
}


def some_slow(names, slow):
  """The names as parameters, these marked slow."""
  marks = dict.fromkeys(slow, pytest.mark.slow)
  return [pytest.param(n, marks=marks.get(n, ())) for n in names]


# What they do is also done by others that stay.
_SLOW = (
  'zlib records',
  'bare records',
  'bare zlib records',
  'gzip lines',
  'texts',
  'npz',
)


class Stored:
  """A source, what is in it, and two epochs and more of its training."""

  def __init__(self, name, folder):
    self.name = name
    make = make_mixture if name == 'mixture' else _SOURCES[name]
    self.source, self.examples = make(folder)
    self.training = self.pipeline()
    self.batches = only_batches(self.training, 24)

  def pipeline(self, **options):
    options = {
      'shuffle': _WINDOW,
      'batcher': tftrain.data.Ragged(),
      **options,
    }
    return tftrain.data.Examples(self.source, _BATCH, **options)


@pytest.fixture(scope='module', params=some_slow(_SOURCES, _SLOW))
def stored(request, tmp_path_factory):
  return Stored(request.param, tmp_path_factory.mktemp('stored'))


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return Stored('records', tmp_path_factory.mktemp('records'))


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
  return Stored('mixture', tmp_path_factory.mktemp('mixture'))


def test_each_example_comes_once_in_every_epoch_of_training(stored):
  found = flat(stored.batches)
  assert all(len(rows(batch)) == _BATCH for batch in stored.batches)
  expected = sorted(key(one) for one in stored.examples)
  assert len(set(expected)) == _SIZE
  for epoch in range(3):
    assert sorted(found[epoch * _SIZE :][:_SIZE]) == expected


def test_an_evaluation_has_all_examples_in_order_and_a_smaller_last_batch(
  stored,
):
  evaluation = stored.pipeline(training=False)
  batches = only_batches(evaluation)
  assert flat(batches) == [key(one) for one in stored.examples]
  assert [len(rows(batch)) for batch in batches] == [5] * 7 + [2]
  known = stored.name != 'generator'
  assert evaluation.num_examples == (_SIZE if known else None)
  assert evaluation.num_steps == (8 if known else None)
  assert not evaluation.repeats


def test_a_resumed_stream_is_the_tail_of_the_whole_one(stored):
  assert not stored.training.has_cursor
  drawn = random.Random(stored.name)
  spans = ((1, 7), (7, 14), (15, 22))  # in the first epoch, the second, beyond
  for step in (drawn.randint(*span) for span in spans):
    again = only_batches(stored.training, 24 - step, step=step)
    assert list(map(rows, again)) == list(map(rows, stored.batches[step:]))


def test_seeds_and_epochs_have_orders_of_their_own(stored):
  found = flat(stored.batches)
  first, second = found[:_SIZE], found[_SIZE : 2 * _SIZE]
  assert first != second
  assert first != [key(one) for one in stored.examples]
  other = flat(only_batches(stored.training, 8, seed=2))[:_SIZE]
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


# Order.


def test_the_seed_of_an_order_may_be_any_that_an_experiment_takes(records):
  large = only_batches(records.training, 8, seed=2**32 - 1)
  assert flat(large)[:_SIZE] != flat(records.batches)[:_SIZE]
  assert sorted(flat(large)[:_SIZE]) == sorted(flat(records.batches)[:_SIZE])


def test_a_shuffle_window_moves_records_no_further_than_that(tmp_path):
  write_bare(tmp_path / 'a.rec', all_examples(size=40))
  source = tftrain.data.TFRecords(tmp_path / 'a.rec', _SPEC)
  (batch,) = tftrain.data.Examples(
    source, 40, shuffle=8, batcher=tftrain.data.Ragged()
  ).peek()
  numbers = batch['number'].reshape(5, 8)
  for index, window in enumerate(numbers):
    assert sorted(window) == list(range(8 * index, 8 * index + 8))
    assert list(window) != sorted(window)


@pytest.mark.parametrize('kind', ['records', 'memory'])
def test_without_a_shuffle_training_repeats_what_is_stored(kind, tmp_path):
  source, found = _SOURCES[kind](tmp_path)
  pipeline = tftrain.data.Examples(
    source, 5, shuffle=0, batcher=tftrain.data.Ragged()
  )
  expected = [key(one) for one in found]
  assert flat(only_batches(pipeline, 15)) == (3 * expected)[:75]
  assert_resumes(pipeline, [3, 9], 12)


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
  source, found = _SOURCES[name](tmp_path)
  for function in (None, lambda one: one):
    pipeline = tftrain.data.Examples(
      source,
      5,
      epochs=2,
      remainder=remainder,
      map=function,
      batcher=tftrain.data.Ragged(),
    )
    batches = only_batches(pipeline)
    sizes = [len(rows(batch)) for batch in batches]
    assert sizes == [5] * 14 + [4] * (remainder == 'keep')
    assert pipeline.num_steps == len(sizes)
    if remainder == 'keep':
      twice = sorted(2 * [key(one) for one in found])
      assert sorted(flat(batches)) == twice
    assert_resumes(pipeline, [5, 11])


# Functions on examples and batches.


def shaken(one, seed):
  return {**one, 'noise': tf.random.stateless_uniform([], seed)}


@pytest.mark.parametrize(
  'kind', some_slow(['records', 'memory', 'generator'], ['memory', 'generator'])
)
@pytest.mark.slow
def test_the_seed_of_a_map_is_another_in_each_epoch_and_always_the_same(
  kind, tmp_path
):
  source, _ = _SOURCES[kind](tmp_path)
  pipeline = tftrain.data.Examples(
    source, 5, map=shaken, shuffle=_WINDOW, batcher=tftrain.data.Ragged()
  )
  batches = only_batches(pipeline, 15)
  noise = np.concatenate([batch['noise'] for batch in batches])
  assert len(set(noise.tolist())) == 75
  assert 0.3 < noise.mean() < 0.7
  assert flat(only_batches(pipeline, 15)) == flat(batches)
  assert flat(only_batches(pipeline, 15, seed=2)) != flat(batches)
  assert_resumes(pipeline, [2, 9, 13], 15)


def test_a_map_may_be_python_with_ifs():
  def function(one):
    if one['number'] % 2 == 0:
      x = one['x'] + 100.0
    else:
      x = one['x']
    return {'x': x, 'number': one['number']}

  source = tftrain.data.InMemory(stacked(all_examples(_DENSE)))
  pipeline = tftrain.data.Examples(source, 37, map=function, training=False)
  (batch,) = pipeline.peek()
  expected = stacked(all_examples(_DENSE))['x']
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
  source = tftrain.data.InMemory(stacked(all_examples(_DENSE)))
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


def long_enough(one):
  return tf.size(one['ids']) > 2


_COMBINATIONS = {
  'filter': {'filter': long_enough},
  'map and filter': {'filter': long_enough, 'map': shaken},
  'bucketed': {'batcher': tftrain.data.Bucketed([2, 4, 7], window=3)},
  'packed': {'batcher': tftrain.data.Packed(16, window=11)},
  'filter and bucketed': {
    'filter': long_enough,
    'batcher': tftrain.data.Bucketed([4, 7], window=2),
  },
  'map, filter and packed': {
    'filter': long_enough,
    'map': lambda one: {'ids': one['ids']},
    'batcher': tftrain.data.Packed(16, window=11),
  },
}


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
  whole = run(pipeline, None if epochs else 24)
  drawn = random.Random(name)
  assert_resumes(
    pipeline,
    sorted(drawn.sample(range(1, len(whole) - 1), 3)),
    None if epochs else 24,
  )


def test_a_filter_keeps_what_it_says_once_in_every_epoch(records):
  pipeline = records.pipeline(filter=long_enough)
  kept = [one for one in records.examples if len(one['ids']) > 2]
  found = flat(only_batches(pipeline, 12))
  assert sorted(found[: len(kept)]) == sorted(map(key, kept))
  assert sorted(found[len(kept) :][: len(kept)]) == sorted(map(key, kept))
  assert found[: len(kept)] != found[len(kept) :][: len(kept)]
  ordered = records.pipeline(filter=long_enough, training=False)
  assert flat(only_batches(ordered)) == list(map(key, kept))
  assert ordered.num_examples is None and ordered.num_steps is None


# Batchers.


def sequences(lengths, first=1):
  """Sequences of these lengths, no number in two of them, none 0."""
  ends = np.cumsum([first, *lengths])
  return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


def in_memory(found, **others):
  ids = tf.RaggedTensor.from_row_lengths(
    np.concatenate(found), np.array([len(one) for one in found], np.int64)
  )
  return tftrain.data.InMemory({'ids': ids, **others})


_LENGTHS = np.random.RandomState(0).randint(1, 17, 120)


def test_bucketed_pads_to_boundaries_and_has_each_example_once_per_epoch():
  found = sequences(_LENGTHS)
  source = in_memory(found, length=np.asarray(_LENGTHS))
  batcher = tftrain.data.Bucketed([4, 8, 16], window=5, value=-1)
  pipeline = tftrain.data.Examples(source, 8, batcher=batcher)
  batches = only_batches(pipeline, 30)
  seen = []
  for batch in batches:
    ids, lengths = batch['ids'].numpy(), batch['length'].numpy()
    assert ids.shape[0] == 8
    longest = lengths.max()
    assert ids.shape[1] == next(b for b in (4, 8, 16) if b >= longest)
    for row, length in zip(ids, lengths, strict=True):
      assert (row[length:] == -1).all()
      seen.append(row[:length].tolist())
  expected = sorted(one.tolist() for one in found)
  assert sorted(seen[:120]) == expected
  assert sorted(seen[120:]) == expected
  assert seen[:120] != seen[120:]
  assert len({batch['ids'].shape[1] for batch in batches}) == 3


def test_bucketed_cuts_what_is_longer_where_it_is_told_to():
  found = sequences([3, 20, 5, 9])
  batcher = tftrain.data.Bucketed([4, 8], window=1, too_long='truncate')
  pipeline = tftrain.data.Examples(
    in_memory(found), 4, batcher=batcher, training=False
  )
  (batch,) = pipeline.peek()
  assert batch['ids'].shape == (4, 8)
  kept = sorted([n for n in row if n] for row in batch['ids'].tolist())
  assert kept == sorted(one[:8].tolist() for one in found)


@pytest.mark.slow
def test_bucketed_goes_by_the_feature_it_is_told():
  x = sequences([2, 8, 2, 8])
  y = tf.ragged.constant(
    [[1.0], [2.0], [3.0] * 4, [4.0] * 4], row_splits_dtype=tf.int64
  )
  for by, wanted in (('ids', [[0, 2], [1, 3]]), ('y', [[0, 1], [2, 3]])):
    pipeline = tftrain.data.Examples(
      in_memory(x, y=y, number=np.arange(4)),
      2,
      batcher=tftrain.data.Bucketed([2, 8], by=by),
      training=False,
    )
    assert [b['number'].tolist() for b in pipeline.peek(2)] == wanted


@pytest.mark.parametrize('remainder', ['keep', 'drop', 'pad'])
def test_a_bucketed_evaluation_loses_no_more_than_remainder_says(remainder):
  found = sequences(_LENGTHS[:37])
  pipeline = tftrain.data.Examples(
    in_memory(found, number=np.arange(37)),
    5,
    batcher=tftrain.data.Bucketed([4, 8, 16], window=3),
    remainder=remainder,
    training=False,
  )
  batches = only_batches(pipeline)
  assert pipeline.num_steps == len(batches) == 7 + (remainder != 'drop')
  numbers = [
    number
    for batch in batches
    for number, ids in zip(
      batch['number'].numpy(), batch['ids'].numpy(), strict=True
    )
    if ids.any()
  ]
  assert (
    len(numbers) == len(set(numbers)) == (35 if remainder == 'drop' else 37)
  )
  if remainder != 'keep':
    assert {len(batch['ids']) for batch in batches} == {5}


def unpacked(batch, length, name='ids'):
  """The sequences in packed rows, the slow way; checks what goes with them."""
  found = []
  values = np.asarray(batch[name])
  segments = np.asarray(batch[f'{name}_segment_ids'])
  positions = np.asarray(batch[f'{name}_positions'])
  assert values.shape == segments.shape == positions.shape
  assert values.shape[1] == length
  for row, marks, places in zip(values, segments, positions, strict=True):
    used = int((marks > 0).sum())
    assert (marks[used:] == 0).all() and (row[used:] == 0).all()
    assert (places[used:] == 0).all()
    assert (np.diff(marks[:used]) >= 0).all()
    for segment in range(1, int(marks.max(initial=0)) + 1):
      inside = marks == segment
      assert places[inside].tolist() == list(range(inside.sum()))
      found.append(row[inside].tolist())
  return found


def pieces(found, length, too_long):
  """What is to come out of Packed: lists of numbers."""
  if too_long == 'truncate':
    return [one[:length].tolist() for one in found]
  return [
    one[begin : begin + length].tolist()
    for one in found
    for begin in range(0, len(one), length)
  ]


@pytest.mark.parametrize('too_long', ['split', 'truncate', 'error'])
@pytest.mark.parametrize('training', [True, False])
def test_packed_rows_hold_every_sequence_exactly_once(training, too_long):
  length = 16 if too_long == 'error' else 11
  found = sequences(_LENGTHS)
  pipeline = tftrain.data.Examples(
    in_memory(found),
    4,
    batcher=tftrain.data.Packed(length, window=30, too_long=too_long),
    training=training,
    epochs=1,
  )
  batches = only_batches(pipeline)
  seen = [one for batch in batches for one in unpacked(batch, length)]
  assert sorted(seen) == sorted(pieces(found, length, too_long))
  tokens = sum(map(len, seen))
  places = sum(batch['ids'].shape[0] for batch in batches) * length
  assert tokens / places > 0.8  # else it would be no packing
  assert all(batch['ids'].shape[0] == 4 for batch in batches[:-1])
  if not training:
    # First fit leaves no sequence where an earlier row had room for it.
    assert seen[0] == pieces(found, length, too_long)[0]


@pytest.mark.slow
def test_packed_keeps_the_features_of_an_example_together():
  found = sequences(_LENGTHS)
  weights = tf.RaggedTensor.from_row_lengths(
    np.concatenate(found) / 2, np.asarray(_LENGTHS, np.int64)
  )
  pipeline = tftrain.data.Examples(
    in_memory(found, weights=weights),
    4,
    batcher=tftrain.data.Packed(16, window=30),
  )
  for batch in pipeline.peek(3):
    np.testing.assert_array_equal(batch['ids'] / 2, batch['weights'])
    np.testing.assert_array_equal(
      batch['ids_segment_ids'], batch['weights_segment_ids']
    )


def test_empty_sequences_take_no_place_in_packed_rows():
  found = sequences([0, 3, 0, 0, 4, 0])
  pipeline = tftrain.data.Examples(
    in_memory(found),
    2,
    batcher=tftrain.data.Packed(8, window=3),
    training=False,
  )
  batches = only_batches(pipeline)
  seen = [one for batch in batches for one in unpacked(batch, 8)]
  assert seen == [one.tolist() for one in found if len(one)]


@pytest.mark.parametrize('length', [None, 9])
def test_padded_fills_up_at_the_end(length):
  found = sequences([3, 7, 1, 5, 2])
  pipeline = tftrain.data.Examples(
    in_memory(found),
    2,
    batcher=tftrain.data.Padded(length, value=-1),
    training=False,
  )
  batches = [batch['ids'] for batch in pipeline.peek(3)]
  assert [b.shape for b in batches] == [
    (2, length or 7),
    (2, length or 5),
    (1, length or 2),
  ]
  rows_there = [row for batch in batches for row in batch]
  for row, one in zip(rows_there, found, strict=True):
    assert row.tolist() == one.tolist() + [-1] * (len(row) - len(one))
  assert pipeline.element_spec['ids'].shape.as_list() == [None, length]


def test_padded_truncates_where_it_is_told_to():
  found = sequences([3, 7])
  pipeline = tftrain.data.Examples(
    in_memory(found),
    2,
    batcher=tftrain.data.Padded(4, too_long='truncate'),
    training=False,
  )
  (batch,) = pipeline.peek()
  assert batch['ids'].tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]


def test_padded_fills_texts_and_steps_of_vectors():
  texts = tf.ragged.constant(
    [['a'], ['b', 'c', 'd'], []], row_splits_dtype=tf.int64
  )
  steps = tf.RaggedTensor.from_row_lengths(
    np.arange(8.0).reshape(4, 2), np.array([2, 0, 2], np.int64)
  )
  pipeline = tftrain.data.Examples(
    tftrain.data.InMemory({'texts': texts, 'steps': steps}),
    3,
    batcher=tftrain.data.Padded(3),
    training=False,
  )
  (batch,) = pipeline.peek()
  assert batch['texts'].tolist() == [
    [b'a', b'', b''],
    [b'b', b'c', b'd'],
    [b'', b'', b''],
  ]
  assert batch['steps'].shape == (3, 3, 2)
  assert batch['steps'].sum(-1).tolist() == [[1, 5, 0], [0, 0, 0], [9, 13, 0]]


def test_ragged_leaves_lengths_as_they_are():
  found = sequences([3, 0, 2])
  (batch,) = tftrain.data.Examples(
    in_memory(found), 3, batcher=tftrain.data.Ragged(), training=False
  ).peek()
  assert isinstance(batch['ids'], tf.RaggedTensor)
  assert batch['ids'].to_list() == [one.tolist() for one in found]


# Mixtures.


def numbered(begin, size):
  return tftrain.data.InMemory({'number': np.arange(begin, begin + size)})


def drawn_from(mixture, count, *, bounds, seed=1, step=0):
  """How many of `count` examples are of each part."""
  pipeline = tftrain.data.Examples(mixture, 8)
  batches = only_batches(pipeline, count // 8, seed=seed, step=step)
  numbers = np.concatenate([batch['number'] for batch in batches])
  return np.histogram(numbers, bounds)[0]


@pytest.mark.slow
def test_a_mixture_resumes_anywhere_and_each_seed_is_another(mixture):
  drawn = random.Random(0)
  for step in (drawn.randint(*span) for span in ((1, 7), (8, 14), (15, 22))):
    again = only_batches(mixture.training, 24 - step, step=step)
    assert list(map(rows, again)) == list(map(rows, mixture.batches[step:]))
  other = only_batches(mixture.training, 24, seed=2)
  assert flat(other) != flat(mixture.batches)
  far = tftrain.data.Examples(mixture.source, 5, shuffle=_WINDOW)
  whole = only_batches(far, 70)  # beyond a round of 256
  tail = only_batches(far, 9, step=61)
  assert list(map(rows, tail)) == list(map(rows, whole[61:]))


@pytest.mark.slow
def test_a_mixture_has_its_proportions_in_every_round_to_one_example():
  parts = {'a': numbered(0, 1000), 'b': numbered(1000, 10)}
  mixture = tftrain.data.Mixture(parts, {'a': 3, 'b': 1})
  # Rounds are of 256 examples. `b` ends 25 times meanwhile.
  for number in range(4):
    counts = drawn_from(mixture, 256, bounds=[0, 1000, 1010], step=32 * number)
    assert abs(counts - [192, 64]).max() <= 1
  far = drawn_from(mixture, 256, bounds=[0, 1000, 1010], step=32 * 100_000)
  assert abs(far - [192, 64]).max() <= 1


def test_a_mixture_has_each_example_of_a_part_once_per_pass_of_that_part():
  parts = {'a': numbered(0, 1000), 'b': numbered(1000, 10)}
  pipeline = tftrain.data.Examples(
    tftrain.data.Mixture(parts, {'a': 3, 'b': 1}), 8
  )
  batches = only_batches(pipeline, 128)
  numbers = np.concatenate([batch['number'] for batch in batches])
  small = numbers[numbers >= 1000]
  assert len(small) == 256
  for begin in range(0, 250, 10):
    assert sorted(small[begin : begin + 10]) == list(range(1000, 1010))
  large = numbers[numbers < 1000]
  assert len(set(large)) == len(large) == 768


def test_a_mixture_without_weights_takes_as_many_as_there_are():
  parts = {'a': numbered(0, 96), 'b': numbered(100, 32)}
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
  parts = {'a': numbered(0, 9), 'b': numbered(100, 9)}
  mixture = tftrain.data.Mixture(parts, {'a': 0, 'b': 1})
  assert drawn_from(mixture, 64, bounds=[0, 100, 200]).tolist() == [0, 64]


@pytest.mark.slow
def test_a_mixture_may_be_filtered_and_resumed():
  parts = {'a': numbered(0, 30), 'b': numbered(100, 9)}
  pipeline = tftrain.data.Examples(
    tftrain.data.Mixture(parts),
    4,
    filter=lambda one: one['number'] % 3 == 0,
    shuffle=_WINDOW,
  )
  assert_resumes(pipeline, [2, 7, 15], 20)


# Parts of the data.


def numbers_of(pipeline):
  batches = only_batches(pipeline)
  return [int(n) for batch in batches for n in batch['number']]


@pytest.mark.parametrize(
  'name',
  some_slow(
    ['records', 'bare gzip records', 'csv', 'memory', 'access', 'mapped'],
    ['records', 'bare gzip records', 'csv', 'access', 'mapped'],
  ),
)
def test_what_is_held_out_is_disjoint_complete_and_the_same_each_time(
  name, tmp_path
):
  source, found = _SOURCES[name](tmp_path)
  options = {
    'training': False,
    'holdout': 0.3,
    'batcher': tftrain.data.Ragged(),
  }
  parts = {
    subset: tftrain.data.Examples(source, 5, subset=subset, **options)
    for subset in ('train', 'holdout')
  }
  train, held_out = (numbers_of(parts[s]) for s in ('train', 'holdout'))
  assert sorted(train + held_out) == list(range(_SIZE))
  assert 4 <= len(held_out) <= 18
  assert len({key(one) for one in found}) == _SIZE
  assert parts['train'].num_examples == len(train)
  assert parts['holdout'].num_examples == len(held_out)
  again = tftrain.data.Examples(source, 5, subset='holdout', **options)
  assert numbers_of(again) == held_out
  training = tftrain.data.Examples(
    source,
    5,
    holdout=0.3,
    epochs=2,
    shuffle=_WINDOW,
    batcher=tftrain.data.Ragged(),
  )
  assert sorted(numbers_of(training)) == sorted(2 * train)


@pytest.mark.parametrize('kind', ['records', 'memory'])
def test_who_is_held_out_does_not_depend_on_the_other_examples(kind, tmp_path):
  def held_out(size, folder):
    if kind == 'memory':
      source = tftrain.data.InMemory(stacked(all_examples(_DENSE, size)))
    else:
      write_bare(tmp_path / f'{folder}.rec', all_examples(_DENSE, size))
      source = tftrain.data.TFRecords(tmp_path / f'{folder}.rec', _DENSE)
    pipeline = tftrain.data.Examples(
      source, 5, training=False, holdout=0.3, subset='holdout'
    )
    return set(numbers_of(pipeline))

  before, after = held_out(37, 'few'), held_out(90, 'many')
  assert before
  assert {number for number in after if number < 37} == before
  assert len(after) > len(before)


def test_the_share_held_out_is_the_one_asked_for():
  source = numbered(0, 20_000)
  for share in (0.01, 0.2, 0.5):
    pipeline = tftrain.data.Examples(
      source, 100, holdout=share, subset='holdout'
    )
    expected = 20_000 * share
    spread = 5 * (expected * (1 - share)) ** 0.5
    assert abs(pipeline.num_examples - expected) < spread


@pytest.mark.parametrize(
  ('kind', 'hosts', 'holdout'),
  [
    ('records', 2, None),  # there are 3 files: by files
    pytest.param('records', 5, None, marks=pytest.mark.slow),  # by records
    ('memory', 2, 0.4),
    pytest.param('records', 2, 0.4, marks=pytest.mark.slow),
    pytest.param('records', 5, 0.4, marks=pytest.mark.slow),
  ],
)
def test_hosts_share_all_examples_without_overlap(
  kind, hosts, holdout, tmp_path
):
  source, _ = _SOURCES[kind](tmp_path)
  options = {'batcher': tftrain.data.Ragged(), 'holdout': holdout}
  whole = tftrain.data.Examples(source, 10, training=False, **options)
  parts, shuffled = [], []
  for host in range(hosts):
    share = {'shard': (host, hosts), **options}
    part = tftrain.data.Examples(source, 10, training=False, **share)
    numbers = numbers_of(part)
    assert part.num_examples == len(numbers)
    parts += numbers
    training = tftrain.data.Examples(source, 10, epochs=1, shuffle=8, **share)
    batches = only_batches(training)
    assert len(rows(batches[0])) == 10 // hosts
    shuffled += [int(n) for batch in batches for n in batch['number']]
  expected = sorted(numbers_of(whole))
  assert sorted(parts) == expected
  assert sorted(shuffled) == expected


def test_an_epoch_takes_as_many_steps_on_each_of_two_hosts_as_on_one():
  source = numbered(0, 40)
  alone = tftrain.data.Examples(source, 10)
  host = tftrain.data.Examples(source, 10, shard=(1, 2))
  assert alone.steps_per_epoch == host.steps_per_epoch == 4


@pytest.mark.slow
def test_a_host_resumes_its_share(records):
  for hosts in (3, 5):
    pipeline = tftrain.data.Examples(
      records.source,
      15,
      shard=(1, hosts),
      shuffle=_WINDOW,
      batcher=tftrain.data.Ragged(),
    )
    assert_resumes(pipeline, [2, 5, 9], 12)


@pytest.mark.parametrize('kind', ['records', 'gzip lines', 'memory'])
def test_a_cache_holds_the_same_examples(kind, tmp_path):
  source, found = _SOURCES[kind](tmp_path)
  options = {'batcher': tftrain.data.Ragged(), 'training': False}
  expected = [key(one) for one in found]
  cached = tftrain.data.Examples(source, 5, cache=True, **options)
  for path in tmp_path.iterdir():
    path.unlink()  # nothing is read again
  assert flat(only_batches(cached)) == expected


@pytest.mark.parametrize('kind', ['memory', 'access'])
def test_a_cache_of_what_is_found_by_index_changes_no_batch(kind, tmp_path):
  source, _ = _SOURCES[kind](tmp_path)
  found = [
    flat(only_batches(
      tftrain.data.Examples(
        source, 5, cache=cache, map=shaken, batcher=tftrain.data.Ragged()
      ),
      12,
    ))
    for cache in (False, True)
  ]  # fmt: skip
  assert found[0] == found[1]


# The last batch.


def weighted_rows(pipeline, place):
  """(sum of weights, weighted sum of x) over all batches of 5 rows each."""
  total, whole = 0.0, 0.0
  for batch in only_batches(pipeline):
    for leaf in tf.nest.flatten(batch):
      assert leaf.shape[0] == 5
    x, weights = place(batch)
    total += float(tf.reduce_sum(weights))
    whole += float(tf.reduce_sum(x * weights))
  return total, whole


@pytest.mark.parametrize('mapped', [None, lambda *one: one])
def test_padding_has_weight_zero_in_tuples_and_dictionaries(mapped):
  x = np.arange(1.0, 38.0).astype('float32')
  given = np.random.RandomState(0).randint(1, 4, 37).astype('float32')
  options = {'training': False, 'remainder': 'pad'}
  pair = tftrain.data.Examples(tftrain.data.InMemory((x, x)), 5, **options)
  assert weighted_rows(pair, lambda b: (b[0], b[2])) == (37, x.sum())
  one = tftrain.data.Examples(tftrain.data.InMemory(x), 5, **options)
  assert weighted_rows(one, lambda b: b) == (37, x.sum())
  triple = tftrain.data.Examples(
    tftrain.data.InMemory((x, x, given)), 5, **options
  )
  sums = given.sum(), (x * given).sum()
  assert weighted_rows(triple, lambda b: (b[0], b[2])) == sums
  names = tftrain.data.Examples(tftrain.data.InMemory({'x': x}), 5, **options)
  assert weighted_rows(names, lambda b: (b['x'], b['weights'])) == (
    37,
    x.sum(),
  )
  own = tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'weights': given}), 5, **options
  )
  assert weighted_rows(own, lambda b: (b['x'], b['weights'])) == sums
  for pipeline in (pair, triple, names):
    for leaf in tf.nest.flatten(pipeline.element_spec):
      assert leaf.shape[0] == 5
    assert pipeline.num_steps == 8


def test_padding_works_on_every_dtype_and_on_texts():
  arrays = {
    name: np.ones([3, 2], tf.as_dtype(name).as_numpy_dtype)
    for name in (
      *feature_spec._AS_INT64,
      *feature_spec._AS_BYTES,
      'int64',
      'float32',
    )
  }
  texts = np.array(['a', 'b', 'c'])
  pipeline = tftrain.data.Examples(
    tftrain.data.InMemory({**arrays, 'texts': texts}),
    2,
    remainder='pad',
    training=False,
  )
  _, last = pipeline.peek(2)
  for name in arrays:
    assert last[name].astype('float32').tolist() == [[1, 1], [0, 0]], name
  assert last['texts'].tolist() == [b'c', b'']
  assert last['weights'].tolist() == [1, 0]


def test_padding_goes_with_a_filter_and_with_padded_sequences():
  found = sequences([3, 7, 1, 5, 2])
  pipeline = tftrain.data.Examples(
    in_memory(found),
    3,
    filter=lambda one: tf.size(one['ids']) > 1,
    batcher=tftrain.data.Padded(7),
    remainder='pad',
    training=False,
  )
  first, last = pipeline.peek(2)
  assert first['weights'].tolist() == [1, 1, 1]
  assert last['weights'].tolist() == [1, 0, 0]
  assert last['ids'].shape == (3, 7) and last['ids'][1:].sum() == 0


@pytest.mark.slow
def test_a_dropped_remainder_is_that_of_the_whole(records):
  pipeline = records.pipeline(training=False, remainder='drop')
  expected = [key(one) for one in records.examples[:35]]
  assert flat(only_batches(pipeline)) == expected
  assert pipeline.num_steps == 7
  kept = [one for one in records.examples if len(one['ids']) > 1]
  filtered = records.pipeline(
    training=False,
    remainder='drop',
    filter=lambda one: tf.size(one['ids']) > 1,
  )
  whole = len(kept) // 5 * 5
  assert whole < len(kept)
  assert flat(only_batches(filtered)) == [key(one) for one in kept[:whole]]


# Options that must change nothing.


@pytest.mark.slow
def test_threads_memory_and_prefetch_change_no_batch(records):
  plain = flat(only_batches(records.pipeline(map=shaken), 9))
  for options in (
    {'threads': 1},
    {'ram_budget_gb': 0.1},
    {'prefetch': 0},
  ):
    pipeline = records.pipeline(map=shaken, **options)
    assert flat(only_batches(pipeline, 9)) == plain


# Writing.


@pytest.mark.parametrize('compression', ['', 'GZIP', 'ZLIB'])
def test_every_dtype_comes_back_bit_by_bit(compression, tmp_path):
  drawn = np.random.RandomState(0)
  spec, examples = {}, [{} for _ in range(5)]
  for name in (
    *feature_spec._AS_INT64,
    *feature_spec._AS_BYTES,
    'int64',
    'float32',
  ):
    kind = tf.as_dtype(name)
    numpy = kind.as_numpy_dtype
    for suffix, shape in (('', ()), ('[2,3]', (2, 3))):
      spec[name + suffix] = name + suffix
      for one in examples:
        if kind.is_floating:
          value = drawn.normal(size=shape).astype(numpy)
        elif kind == tf.bool:
          value = drawn.randint(0, 2, shape).astype(bool)
        else:
          value = drawn.randint(kind.min, kind.max, shape, np.dtype(numpy))
          value = np.asarray(value, numpy)
        one[name + suffix] = np.asarray(value)
  extremes = {'uint64': [0, 2**64 - 1], 'int64': [-(2**63), 2**63 - 1]}
  for name, values in extremes.items():
    spec[f'{name}[2]'] = f'{name}[2]'
    for one in examples:
      one[f'{name}[2]'] = np.array(values, name)
  spec['float32[3]'] = 'float32[3]'
  spec['text'], spec['texts'] = 'string', 'string[2]'
  for number, one in enumerate(examples):
    one['float32[3]'] = np.array([np.nan, np.inf, -0.0], 'float32')
    one['text'] = f'é{number}'
    one['texts'] = [b'\x00\xff', b'']
  tftrain.data.write_records(
    tmp_path / 'all', examples, spec, shards=1, compression=compression
  )
  pipeline = tftrain.data.Examples(
    tftrain.data.TFRecords(tmp_path / 'all-*'), 5, training=False
  )
  (batch,) = pipeline.peek()
  assert set(batch) == set(spec)
  for name in spec:
    if name.startswith('text'):
      continue
    expected = np.stack([one[name] for one in examples])
    assert batch[name].dtype == expected.dtype, name
    assert batch[name].tobytes() == expected.tobytes(), name
  assert batch['text'].tolist() == [f'é{n}'.encode() for n in range(5)]
  assert batch['texts'].tolist() == [[b'\x00\xff', b'']] * 5


def test_lengths_that_vary_come_back(tmp_path):
  spec = {
    'ids': 'int64[?]',
    'steps': 'float32[?,3]',
    'words': 'string[?]',
    'small': 'int16[?]',
  }
  examples = [
    {
      'ids': np.arange(n),
      'steps': np.arange(3.0 * n).reshape(n, 3).astype('float32'),
      'words': np.array([f'w{i}' for i in range(n)], object),
      'small': np.arange(n).astype('int16'),
    }
    for n in (3, 0, 5, 1)
  ]
  tftrain.data.write_records(tmp_path / 'all', examples, spec, shards=1)
  (batch,) = tftrain.data.Examples(
    tftrain.data.TFRecords(tmp_path / 'all-*'),
    4,
    batcher=tftrain.data.Ragged(),
    training=False,
  ).peek()
  assert batch['small'].dtype == tf.int16
  for name in spec:
    expected = [one[name].tolist() for one in examples]
    found = batch[name].to_list()
    if name == 'words':
      found = [[word.decode() for word in words] for words in found]
    assert found == expected, name


def test_written_features_are_those_of_the_first_example(tmp_path):
  image = np.zeros([4, 4, 1], 'uint8')
  paths = tftrain.data.write_records(
    tmp_path / 'train',
    ({'image': image + n, 'label': n, 'name': 'a'} for n in range(9)),
    shards=2,
  )
  assert [path.name for path in paths] == [
    'train-00000-of-00002.tfrecord',
    'train-00001-of-00002.tfrecord',
  ]
  said = json.loads((tmp_path / 'features.json').read_text())
  assert said['features'] == {
    'image': 'uint8[4,4,1]',
    'label': 'int64',
    'name': 'string',
  }
  assert [said['files'][path.name]['records'] for path in paths] == [5, 4]
  assert all(
    said['files'][path.name]['bytes'] == path.stat().st_size for path in paths
  )


def test_a_dataset_may_be_written_and_other_files_stay_known(tmp_path):
  dataset = tf.data.Dataset.from_tensor_slices({'number': np.arange(6)})
  tftrain.data.write_records(tmp_path / 'train', dataset, shards=2)
  tftrain.data.write_records(tmp_path / 'test', dataset.take(3), shards=1)
  said = json.loads((tmp_path / 'features.json').read_text())
  assert len(said['files']) == 3
  assert tftrain.data.TFRecords(tmp_path / 'train-*').num_examples == 6
  assert tftrain.data.TFRecords(tmp_path / 'test-*').num_examples == 3
  assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
  examples = [{'x': [1, 2]}, {'x': [1, 2, 3]}]
  with pytest.raises(errors.InputError, match='example 1: x is int64.3., exp'):
    tftrain.data.write_records(tmp_path / 'train', examples, shards=1)
  assert not list(tmp_path.glob('*train*'))
  with pytest.raises(errors.InputError, match='0 examples to write'):
    tftrain.data.write_records(tmp_path / 'train', [])
  with pytest.raises(errors.InputError, match='do not fill 8 shards.*shards=2'):
    tftrain.data.write_records(tmp_path / 'train', examples[:1] * 2)
  assert not list(tmp_path.glob('*train*'))
  tftrain.data.write_records(tmp_path / 'a', examples[:1], shards=1)
  with pytest.raises(errors.InputError, match='another directory'):
    tftrain.data.write_records(tmp_path / 'b', [{'y': 1}], shards=1)
  for wrong in ({'shards': 0}, {'compression': 'ZIP'}):
    with pytest.raises(errors.ConfigError, match=next(iter(wrong))):
      tftrain.data.write_records(tmp_path / 'a', examples[:1], **wrong)


# Specs.


@pytest.mark.parametrize(
  ('text', 'dtype', 'shape'),
  [
    ('uint8[28,28,1]', tf.uint8, (28, 28, 1)),
    ('int64', tf.int64, ()),
    ('int64[?]', tf.int64, (None,)),
    ('float32[?,3]', tf.float32, (None, 3)),
    ('float32[ ? , 3 ]', tf.float32, (None, 3)),
    ('bfloat16[2]', tf.bfloat16, (2,)),
    ('bool', tf.bool, ()),
    ('string', tf.string, ()),
  ],
)
def test_a_spec_is_read_as_it_is_written(text, dtype, shape):
  (feature,) = feature_spec.parse({'x': text}).values()
  assert (feature.dtype, feature.shape) == (dtype, shape)
  assert str(feature) == text.replace(' ', '')


@pytest.mark.parametrize(
  'text',
  [
    'int',
    'complex64',
    'int64(3)',
    'int64[3',
    'int64[3?]',
    'int64[a]',
    'int64[3,?]',
    'int64[0]',
    'int64[-1]',
    'int64[2,,3]',
    'int64[2 3]',
    'uint8[?]',
    '',
    'int64[?',
    3,
    None,
    tf.int64,
  ],
)
def test_a_bad_spec_is_refused_with_its_name(text):
  with pytest.raises(errors.ConfigError) as info:
    feature_spec.parse({'height': text})
  assert f"features['height'] = {text!r}; " in str(info.value)
  assert '\n' not in str(info.value)


@pytest.mark.parametrize('features', [{}, None, 'int64', ['int64']])
def test_features_that_are_no_mapping_are_refused(features):
  with pytest.raises(errors.ConfigError, match=r'^features = .*\{name: spec\}'):
    feature_spec.parse(features)


# tf.data service.


@pytest.fixture(scope='module')
def service():
  servers = tf.data.experimental.service
  dispatcher = servers.DispatchServer()
  address = dispatcher.target.split('://')[1]
  worker = servers.WorkerServer(
    servers.WorkerConfig(dispatcher_address=address)
  )
  yield dispatcher.target
  del worker, dispatcher


@pytest.mark.slow
def test_a_tf_data_service_makes_the_same_batches(service, records):
  for options in ({}, {'filter': long_enough}):
    own = run(records.pipeline(**options), 12)
    served = records.pipeline(service=service, **options)
    for _ in range(2):
      found = run(served, 12)
      assert flat(b for b, _ in found) == flat(b for b, _ in own)
    resumed = run(served, 7, step=5, cursor=own[4][1])
    assert flat(b for b, _ in resumed) == flat(b for b, _ in own[5:])


def test_a_dead_service_is_an_error(records):
  with contextlib.closing(socket.socket()) as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  with pytest.raises(
    errors.InputError,
    match=rf'^no tf.data service answers at grpc://localhost:{port} \(.*'
    r'refused\); start its dispatcher, or leave Examples.service out$',
  ):
    records.pipeline(service=f'grpc://localhost:{port}')
  for address in ('localhost:1', 'grpc://localhost', 'http://a:1', ''):
    with pytest.raises(errors.ConfigError, match='Examples.service = .*grpc'):
      records.pipeline(service=address)


# The command.


@pytest.fixture
def written(tmp_path):
  """Files of 20 records each, the second with a flipped byte in record 7."""
  good, bad = tmp_path / 'a.rec', tmp_path / 'b.rec'
  write_bare(good, all_examples(_DENSE, 20))
  write_bare(bad, all_examples(_DENSE, 20))
  data = bytearray(bad.read_bytes())
  size = struct.unpack_from('<Q', data)[0] + 16
  assert len(data) == 20 * size or len(data) > 7 * size
  byte = 0
  for _ in range(7):
    byte += struct.unpack_from('<Q', data, byte)[0] + 16
  data[byte + 15] ^= 1
  bad.write_bytes(data)
  return good, bad, byte


def test_inspect_shows_the_first_record(written, capsys):
  good, _, _ = written
  assert __main__.main(['inspect', str(good)]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    f'{good}: 20 records',
    '  number: int64_list of 1: [0]',
    '  x: float_list of 2: [0.0, 0.0]',
  ]


def test_check_names_the_damaged_record(written, capsys):
  good, bad, byte = written
  assert __main__.main(['check', str(good.parent / '*.rec')]) == 1
  assert capsys.readouterr().out.splitlines() == [
    f'{good}: 20 records',
    f'{bad}: 19 intact records; damaged:',
    f'  record 7 (byte {byte}): the checksum of its data is wrong',
    '1 of 2 files are damaged',
  ]
  assert __main__.main(['check', str(good)]) == 0
  assert capsys.readouterr().out.endswith('0 of 1 files are damaged\n')


@pytest.mark.parametrize('compression', ['', 'GZIP', 'ZLIB'])
def test_repair_writes_what_is_intact(compression, written, tmp_path, capsys):
  good, bad, _ = written
  if compression:
    write_bare(bad, all_examples(_DENSE, 20), compression)
    bad.write_bytes(bad.read_bytes()[:-30])
  to = tmp_path / 'new' / 'repaired'
  assert __main__.main(['repair', str(bad), str(good), '--to', str(to)]) == 0
  assert f'What is intact is in {to}' in capsys.readouterr().out
  assert __main__.main(['check', str(to / '*.rec')]) == 0
  found = tf.data.TFRecordDataset(str(to / bad.name), compression or None)
  found = list(found.as_numpy_iterator())
  expected = [serialized(one) for one in all_examples(_DENSE, 20)]
  if compression:
    assert found == expected[: len(found)]
  else:
    assert found == expected[:7] + expected[8:]
  whole = tf.data.TFRecordDataset(str(to / good.name))
  assert list(whole.as_numpy_iterator()) == expected


def test_the_command_says_what_is_wrong_with_what_it_is_given(
  written, tmp_path, capsys
):
  good, _, _ = written
  assert __main__.main(['inspect', str(tmp_path / 'none*')]) == 2
  assert capsys.readouterr().err.startswith('no file matches ')
  assert __main__.main(['repair', str(good), '--to', str(tmp_path)]) == 2
  assert 'repair writes to another directory' in capsys.readouterr().err
  assert good.read_bytes()
  other = tmp_path / 'other.txt'
  other.write_text('no records at all, but text')
  assert __main__.main(['check', str(other)]) == 2
  assert capsys.readouterr().err.startswith(f'{other} is no TFRecord file')


def test_permutations_hit_every_index_once():
  for size in (1, 2, 37, 1000):
    index = tf.range(size, dtype=tf.int64)
    seen = set()
    for epoch in range(3):
      found = shuffle_lib.permuted(index, [1, 2, epoch], size).numpy()
      assert sorted(found) == list(range(size))
      seen.add(tuple(found.tolist()))
    assert len(seen) == 3 or size <= 2


def test_pipelines_describe_themselves(records):
  lines = records.pipeline(training=False).describe().splitlines()
  assert lines[:2] == ['examples: 37', 'steps: 8']
  lines = records.training.describe().splitlines()
  assert lines[:2] == ['examples: 37', 'steps: without end']
  assert "'ids': 'int64[5,?]'" in lines[2]


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

"""Host rows: each worker makes only its own rows of a batch."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import host_shares
import tftrain
from tftrain.distribute import row_sharding

_EXAMPLES = 23
_SEED = 7


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  directory = tmp_path_factory.mktemp('data')
  tftrain.data.write_records(
    directory / 'train',
    ({'x': np.float32([i, -i]), 'n': np.int64(i)} for i in range(_EXAMPLES)),
    shards=2,
  )
  for number in range(_EXAMPLES):
    path = directory / 'images' / 'ab'[number % 2] / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full([2, 2, 3], number, np.uint8)
    path.write_bytes(tf.io.encode_png(image).numpy())
  return directory


def array_record(folder):
  writers = pytest.importorskip('array_record.python.array_record_module')
  path = str(folder / 'a.array_record')
  writer = writers.ArrayRecordWriter(path, 'group_size:1')
  for number in range(_EXAMPLES):
    feature = {
      'n': tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
      'x': tf.train.Feature(float_list=tf.train.FloatList(value=[number] * 2)),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    writer.write(example.SerializeToString())
  writer.close()
  return tftrain.data.ArrayRecord(path, {'n': 'int64', 'x': 'float32[2]'})


def varying():
  lengths = np.arange(_EXAMPLES) % 4
  return tf.RaggedTensor.from_row_lengths(np.arange(lengths.sum()), lengths)


_SOURCES = {
  'memory': lambda folder: tftrain.data.InMemory(
    {'x': np.arange(2.0 * _EXAMPLES).reshape(-1, 2), 'n': np.arange(_EXAMPLES)}
  ),
  'ragged': lambda folder: tftrain.data.InMemory(
    {'x': varying(), 'n': np.arange(_EXAMPLES)}
  ),
  'python': lambda folder: tftrain.data.RandomAccess(
    [{'x': np.float32([i]), 'n': i} for i in range(_EXAMPLES)]
  ),
  'array_record': array_record,
  'records': lambda folder: tftrain.data.TFRecords(folder / 'train-*'),
  'held out': lambda folder: tftrain.data.InMemory({
    'x': np.arange(2.0 * 40).reshape(-1, 2), 'n': np.arange(40)
  }).split(0.4, 'train'),
  'images': lambda folder: tftrain.data.ImageFolder(folder / 'images'),
}  # fmt: skip


def noisy(example, seed):
  noise = tf.random.stateless_uniform([], seed)
  return {**example, 'noise': noise}


def batches_of(pipeline, start_step, n=99):
  dataset = pipeline.dataset(_SEED, start_step).take(n)
  return [
    [leaf.numpy() for leaf in tf.nest.flatten(batch)] for batch in dataset
  ]


def assert_parts_are_whole(pipeline, teams, steps=(0, 3), n=99):
  for start_step in steps:
    whole = batches_of(pipeline, start_step, n)
    for workers, local in teams:
      parts = []
      for share in host_shares.shares_of(workers, local):
        part = pipeline.part(share)
        parts.append(batches_of(part, start_step, n))
        assert part.num_steps == pipeline.num_steps
        assert part.fingerprint() == pipeline.fingerprint()
      assert {len(part) for part in parts} == {len(whole)}
      for number, batch in enumerate(whole):
        rows = len(batch[0])
        for share, part in zip(
          host_shares.shares_of(workers, local), parts, strict=True
        ):
          begin, end = share.of(rows)
          assert len(part[number][0]) == end - begin
        joined = [
          np.concatenate(leaves)
          for leaves in zip(*(part[number] for part in parts), strict=True)
        ]
        for one, other in zip(
          what_counts(pipeline, joined), what_counts(pipeline, batch),
          strict=True,
        ):  # fmt: skip
          np.testing.assert_array_equal(one, other)


def what_counts(pipeline, leaves):
  """Leaves without rows of padding, which are copies of another row."""
  if not pipeline.pads:
    return leaves
  weights = leaves[sorted(pipeline.element_spec).index('weights')]
  return [weights, *(leaf[weights != 0] for leaf in leaves)]


_SLOWLY = [
  pytest.param(function, kind, marks=pytest.mark.slow)
  for kind in _SOURCES
  for function in (None, noisy)
  if (function, kind) != (noisy, 'memory')
]


@pytest.mark.parametrize(('function', 'kind'), [(noisy, 'memory'), *_SLOWLY])
def test_parts_of_a_last_batch_that_is_not_full(function, kind, folder):
  batcher = tftrain.data.Padded(3) if kind == 'ragged' else None
  # Batches of 7: the last has 2 rows, less than there are workers.
  data = tftrain.data.Examples(
    _SOURCES[kind](folder), 7, training=False, batcher=batcher, map=function
  )
  assert_parts_are_whole(data, [(3, 1)], (2,))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['memory', 'records'])
@pytest.mark.parametrize('remainder', ['keep', 'drop', 'pad'])
@pytest.mark.parametrize('function', [None, noisy])
def test_parts_whatever_the_remainder(kind, remainder, function, folder):
  data = tftrain.data.Examples(
    _SOURCES[kind](folder), 8, epochs=3, shuffle=5,
    map=function, remainder=remainder,
  )  # fmt: skip
  assert_parts_are_whole(data, [(2, 1), (3, 2)], (0, 5, 99))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('remainder', 'kind'),
  [('drop', 'memory'), ('pad', 'records')],
)
def test_parts_of_a_batch_dropped_or_filled_up(remainder, kind, folder):
  data = tftrain.data.Examples(  # the last batch has 2 rows
    _SOURCES[kind](folder), 7, epochs=1, map=noisy, remainder=remainder
  )
  assert_parts_are_whole(data, [(3, 1)], (2,))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['memory', 'records'])
def test_parts_of_what_goes_on_for_ever(kind, folder):
  data = tftrain.data.Examples(_SOURCES[kind](folder), 4, map=noisy, shuffle=4)
  assert_parts_are_whole(data, [(2, 1)], (11,), n=3)
  part = data.part(row_sharding.Share(1, 2, 2))
  assert {leaf.shape[0] for leaf in tf.nest.flatten(part.element_spec)} == {2}


@pytest.mark.parametrize(
  'options',
  [
    {'training': False},
    *(
      pytest.param({'epochs': epochs}, marks=pytest.mark.slow)
      for epochs in (3, None)
    ),
  ],
)
def test_parts_of_arrays_in_the_graph_and_out_of_it(options):
  x = np.arange(2 * _EXAMPLES).reshape(-1, 2)
  data = tftrain.data.Arrays((x, x[:, 0]), 6, **options)
  n = 99 if data.num_steps else 5
  assert_parts_are_whole(data, [(2, 1), (3, 2)], (3,), n=n)
  for start_step in (0, 3):
    whole = data.batch(_SEED, tf.constant(start_step, tf.int64))
    parts = [
      data.part(share).batch(_SEED, tf.constant(start_step, tf.int64))
      for share in host_shares.shares_of(3, 1)
    ]
    for one, *found in zip(whole, *parts, strict=True):
      np.testing.assert_array_equal(tf.concat(found, 0), one)


@pytest.mark.slow
def test_parts_of_the_first_batches(folder):
  data = tftrain.data.Examples(_SOURCES['memory'](folder), 6, map=noisy)
  for repeat in (False, True):
    first = tftrain.data.FirstBatches(data, 3, repeat=repeat)
    assert_parts_are_whole(first, [(2, 1)], (2,), n=3)


def test_other_rows_are_neither_looked_up_nor_mapped():
  looked_up, mapped = [], []

  class Data:
    def __len__(self):
      return _EXAMPLES

    def __getitem__(self, index):
      looked_up.append(index)
      return {'n': np.int64(index)}

  def note(example):
    def call(n):
      mapped.append(int(n))
      return n

    n = tf.numpy_function(call, [example['n']], tf.int64, stateful=False)
    return {'n': tf.ensure_shape(n, [])}

  data = tftrain.data.Examples(
    tftrain.data.RandomAccess(Data()), 6, training=False, map=note
  )
  part = data.part(row_sharding.Share(1, 2, 3))
  looked_up.clear()
  mapped.clear()
  found = np.concatenate([batch[0] for batch in batches_of(part, 0)])
  assert sorted(mapped) == sorted(looked_up) == found.tolist()
  assert found.tolist() == [2, 3, 8, 9, 14, 15, 20, 21]


@pytest.mark.parametrize(
  'training', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_other_records_are_not_decoded(folder, training):
  source = tftrain.data.TFRecords(folder / 'train-*')
  counts = []
  plain = source.decode

  def decode(records):
    def note(texts):
      counts.append(len(texts))
      return texts

    noted = tf.numpy_function(note, [records], tf.string, stateful=False)
    return plain(tf.ensure_shape(noted, records.shape))

  source.decode = decode
  data = tftrain.data.Examples(source, 6, training=training)
  part = data.part(row_sharding.Share(0, 1, 2))
  counts.clear()
  rows = [len(batch[0]) for batch in batches_of(part, 0, 4)]
  assert rows == [3, 3, 3, 3]
  assert set(counts) == {3}


class Custom(tftrain.data.InMemory):
  def chunks(self, size, order, start=0):
    return super().chunks(size, order, start).map(lambda batch: batch)


@pytest.mark.slow
def test_what_cannot_be_made_in_parts_is_read_whole(folder):
  source = _SOURCES['ragged'](folder)
  share = row_sharding.Share(0, 1, 2)
  padded = tftrain.data.Padded(3)
  whole = {
    'filter': {'filter': lambda one: one['n'] > 2, 'batcher': padded},
    'longest': {'batcher': tftrain.data.Padded()},
    'ragged': {'batcher': tftrain.data.Ragged()},
    'bucketed': {'batcher': tftrain.data.Bucketed([3])},
    'mixes': {'batcher': padded, 'map_batch': lambda batch: batch},
    'shard': {'batcher': padded, 'shard': (0, 2)},
  }
  for options in whole.values():
    assert tftrain.data.Examples(source, 6, **options).part(share) is None
  assert tftrain.data.Examples(source, 6, batcher=padded).part(share)
  one = tftrain.data.Examples(source, 1, training=False, batcher=padded)
  assert one.part(share) is None  # somebody would never have a row
  arrays = {'n': np.arange(9)}
  for other in (
    Custom(arrays),
    tftrain.data.Generator(lambda: [{'n': n} for n in range(9)]),
    tftrain.data.Mixture({'a': tftrain.data.InMemory(arrays)}),
  ):
    assert tftrain.data.Examples(other, 6).part(share) is None
  dataset = tf.data.Dataset.range(9).batch(3)
  assert tftrain.data.as_pipeline(dataset, training=True).part(share) is None

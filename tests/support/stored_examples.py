"""The same examples stored in every source, and batches compared."""

import gzip
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

import tftrain

SIZE, BATCH, WINDOW = 37, 5, 8
SPEC = {'number': 'int64', 'x': 'float32[2]', 'ids': 'int64[?]'}
DENSE = {'number': 'int64', 'x': 'float32[2]'}


def example(number):
  """The example of that number; its `ids` has 1 to 7 entries, all its own."""
  return {
    'number': np.int64(number),
    'x': np.array([number / 3, -number], np.float32),
    'ids': 10 * number + np.arange(1 + number % 7),
  }


def example_of(names, number):
  return {name: example(number)[name] for name in names}


def all_examples(names=SPEC, size=SIZE):
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
    folder / 'train', found, SPEC, shards=3, compression=compression
  )
  return tftrain.data.TFRecords(folder / 'train-*'), dealt(found, 3)


def make_bare(folder, compression=''):
  found = all_examples()
  write_bare(folder / 'a.rec', found[:10], compression)
  write_bare(folder / 'b.rec', found[10:], compression)
  return tftrain.data.TFRecords(folder / '*.rec', SPEC), found


def make_csv(folder):
  found = [
    {
      'number': np.int64(n),
      'ratio': np.float32(n / 4),
      'name': f'n,{n}'.encode(),
    }
    for n in range(SIZE)
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
  return tftrain.data.JsonLines(folder / '*.jsonl', SPEC), found


def make_lines(folder, opened=open):
  for name, part in (('a', range(20)), ('b', range(20, SIZE))):
    with opened(folder / f'{name}.txt', 'wb') as file:
      file.write('\n'.join(f'line {n} é' for n in part).encode())
  found = [{'text': f'line {n} é'.encode()} for n in range(SIZE)]
  return tftrain.data.TextLines(folder / '*.txt'), found


def make_texts(folder):
  for n in range(SIZE):
    (folder / f'{n:03d}.txt').write_text(f'two\nlines {n}')
  found = [{'text': f'two\nlines {n}'.encode()} for n in range(SIZE)]
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
    {**stacked(all_examples(DENSE)), 'ids': ids}
  ), found


def make_npz(folder):
  found = all_examples(DENSE)
  np.savez(folder / 'arrays.npz', **stacked(found))
  return tftrain.data.Npz(folder / 'arrays.npz'), found


def make_access(folder):
  del folder
  return tftrain.data.RandomAccess(all_examples(), SPEC), all_examples()


def make_generator(folder):
  del folder

  def read():
    for number in range(SIZE):
      yield example(number)

  return tftrain.data.Generator(read, SPEC), all_examples()


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
  return tftrain.data.Parquet(folder / '*.parquet', features=SPEC), found


def make_array_record(folder):
  module = pytest.importorskip('array_record.python.array_record_module')
  found = all_examples()
  for name, part in (('a', found[:20]), ('b', found[20:])):
    path = folder / f'{name}.array_record'
    writer = module.ArrayRecordWriter(str(path), 'group_size:1')
    for one in part:
      writer.write(serialized(one))
    writer.close()
  return tftrain.data.ArrayRecord(folder / '*.array_record', SPEC), found


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
      yield from enumerate(all_examples(DENSE))

  builder = Tiny(data_dir=str(folder), file_format='array_record')
  builder.download_and_prepare()
  source = tftrain.data.Tfds('tiny', 'train', data_dir=str(folder))
  return source, all_examples(DENSE)


def opposite(one):
  return {**one, 'number': -one['number'] - 1}


def make_mixture(folder):
  large, found = make_records(folder)
  small = tftrain.data.InMemory(stacked(all_examples(DENSE, 7)))
  large = tftrain.data.Mapped(large, lambda one: {n: one[n] for n in DENSE})
  small = tftrain.data.Mapped(small, opposite)
  return tftrain.data.Mixture(
    {'large': large, 'small': small}, {'large': 2, 'small': 1}
  ), found


SOURCES = {
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


class Stored:
  """A source, what is in it, and two epochs and more of its training."""

  def __init__(self, name, folder):
    self.name = name
    make = make_mixture if name == 'mixture' else SOURCES[name]
    self.source, self.examples = make(folder)
    self.training = self.pipeline()
    self.batches = only_batches(self.training, 24)

  def pipeline(self, **options):
    options = {
      'shuffle': WINDOW,
      'batcher': tftrain.data.Ragged(),
      **options,
    }
    return tftrain.data.Examples(self.source, BATCH, **options)


def shaken(one, seed):
  return {**one, 'noise': tf.random.stateless_uniform([], seed)}


def long_enough(one):
  return tf.size(one['ids']) > 2


def sequences(lengths, first=1):
  """Sequences of these lengths, no number in two of them, none 0."""
  ends = np.cumsum([first, *lengths])
  return [np.arange(a, b) for a, b in itertools.pairwise(ends)]


def in_memory(found, **others):
  ids = tf.RaggedTensor.from_row_lengths(
    np.concatenate(found), np.array([len(one) for one in found], np.int64)
  )
  return tftrain.data.InMemory({'ids': ids, **others})


def numbered(begin, size):
  return tftrain.data.InMemory({'number': np.arange(begin, begin + size)})

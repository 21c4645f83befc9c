"""Benchmarks of input pipelines: throughput ratios, resuming and memory.

  python benchmarks/inputs.py
  python benchmarks/inputs.py --only=records,arrays

All data are generated from a seed in a temporary directory. Contestants take
turns, as in steps.py; each is read inside a `tf.function`, as a training loop
does, for `--seconds`. The reported ratio is the median over rounds. Sections:

records: Examples per second from 60,000 records in 8 files, images of 28x28
  bytes and labels, shuffled, batches of 128. `one by one` is how most input
  readers are written: interleave, shuffle(10,000), repeat, parse each record,
  batch, prefetch. `tuned` is the fastest found by hand: it parses whole
  batches, and reads and shuffles many records at a time, in any order; `tuned,
  usual shuffle` has `shuffle(10,000)`. tftrain has a deterministic order.
arrays: The same from memory, 60,000 rows of 784 floats and labels; `hand` is
  from_tensor_slices, shuffle(10,000), repeat, batch, prefetch.
resume: Seconds to the first batch of a run that resumes at record 1,000,000 of
  1,200,000 small ones; for data in memory, divided by the seconds at step 0.
memory: Resident memory after each of 20 epochs of the 60,000 records.
text: A file of `--text_gb`, line by line, shuffled: MB per second and memory
  use. The section needs that much disk space.
stages: Time per example that each stage of the records' pipeline adds, with a
  per-example `map` and `filter`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import gc
import json
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import updates
import tftrain

SECTIONS = ('records', 'arrays', 'resume', 'memory', 'text', 'stages')

# Flags of steps.py and updates.py that do not apply here.
for _name in ('replicas', 'steps', 'warm_up'):
  delattr(flags.FLAGS, _name)

_SECONDS = flags.DEFINE_float(
  'seconds', 3.0, 'How long a contestant is timed in a round.'
)
_EPOCHS = flags.DEFINE_integer(
  'epochs', 20, 'Epochs of `memory`.', lower_bound=4
)
_TEXT_GB = flags.DEFINE_float('text_gb', 1.0, 'Size of the file of `text`.')

EXAMPLES, SHARDS, BATCH_SIZE = 60_000, 8, 128
WINDOW = 10_000  # shuffle buffer of all contestants
TINY, RESUMED_AT = 1_200_000, 1_000_000

Figure = updates.Figure
AUTOTUNE = tf.data.AUTOTUNE


# Data.
def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
  """Returns images `[examples, 28, 28]`, uint8, and labels 0 to 9, int64."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (EXAMPLES, 28, 28), np.uint8)
  return images, rng.integers(0, 10, EXAMPLES)


def write_images(directory: pathlib.Path) -> pathlib.Path:
  """Writes the records if missing; returns a glob of the files."""
  folder = directory / 'images'
  if not folder.exists():
    begun = time.perf_counter()
    tftrain.data.write_records(
      folder / 'train',
      (
        {'image': image, 'label': label}
        for image, label in zip(*images_and_labels(), strict=True)
      ),
      shards=SHARDS,
    )
    seconds = time.perf_counter() - begun
    print(f'wrote {EXAMPLES:,} records in {seconds:.1f} s')
  return folder / 'train-*'


def write_tiny(directory: pathlib.Path) -> pathlib.Path:
  """Writes 1,200,000 records, copies of 1,000: distinct ones take minutes."""
  folder = directory / 'tiny'
  tftrain.data.write_records(
    folder / 'a', ({'number': n} for n in range(1000)), shards=1
  )
  (first,) = folder.glob('a-*')
  some = list(tf.data.TFRecordDataset(str(first)).as_numpy_iterator())
  first.unlink()
  for shard in range(SHARDS):
    path = folder / f'train-{shard:05d}-of-{SHARDS:05d}.tfrecord'
    with tf.io.TFRecordWriter(str(path)) as writer:
      for number in range(TINY // SHARDS):
        writer.write(some[number % len(some)])
  return folder / 'train-*'


def write_lines(path: pathlib.Path, size: int) -> int:
  """Writes about `size` bytes in lines of 20 to 140; returns the bytes."""
  rng = np.random.default_rng(0)
  letters = rng.integers(97, 123, 1 << 24, np.uint8)
  ends = np.cumsum(rng.integers(20, 141, len(letters) // 20))
  letters[ends[ends < len(letters)]] = ord('\n')
  block = letters.tobytes()
  with path.open('wb') as file:
    for _ in range(max(1, round(size / len(block)))):
      file.write(block)
    return file.tell()


# Contestants: datasets of batches of (images, labels).


def ours(paths: pathlib.Path, **options: Any) -> tftrain.data.Examples:
  return tftrain.data.Examples(
    tftrain.data.TFRecords(paths),
    BATCH_SIZE,
    select=('image', 'label'),
    **options,
  )


FEATURES = {
  'image': tf.io.FixedLenFeature((), tf.string),
  'label': tf.io.FixedLenFeature((), tf.int64),
}


def parse_one(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  parsed = tf.io.parse_single_example(record, FEATURES)
  image = tf.io.decode_raw(parsed['image'], tf.uint8)
  return tf.reshape(image, (28, 28)), parsed['label']


def parse_many(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  parsed = tf.io.parse_example(records, FEATURES)
  images = tf.io.decode_raw(parsed['image'], tf.uint8, fixed_length=28 * 28)
  return tf.reshape(images, (-1, 28, 28)), parsed['label']


def read(
  paths: pathlib.Path, together: int | None = None, block: int = 1
) -> tf.data.Dataset:
  """Interleaves the records of all files, in blocks of `together` if given."""

  def records(path: tf.Tensor) -> tf.data.Dataset:
    found = tf.data.TFRecordDataset(path)
    return found if together is None else found.batch(together)

  return tf.data.Dataset.list_files(str(paths), shuffle=True).interleave(
    records,
    cycle_length=SHARDS,
    block_length=block,
    num_parallel_calls=AUTOTUNE,
    deterministic=False,
  )


def one_by_one(paths: pathlib.Path) -> tf.data.Dataset:
  return (
    read(paths)
    .shuffle(WINDOW)
    .repeat()
    .map(parse_one, num_parallel_calls=AUTOTUNE)
    .batch(BATCH_SIZE, drop_remainder=True)
    .prefetch(AUTOTUNE)
  )


def tuned(paths: pathlib.Path) -> tf.data.Dataset:
  return (
    read(paths, together=16)
    .repeat()
    .rebatch(WINDOW)
    .map(tf.random.shuffle)
    .prefetch(1)
    .rebatch(BATCH_SIZE, drop_remainder=True)
    .map(parse_many, num_parallel_calls=AUTOTUNE, deterministic=False)
    .prefetch(AUTOTUNE)
  )


def tuned_usual_shuffle(paths: pathlib.Path) -> tf.data.Dataset:
  return (
    read(paths, block=16)
    .shuffle(WINDOW)
    .repeat()
    .batch(BATCH_SIZE, drop_remainder=True)
    .map(parse_many, num_parallel_calls=AUTOTUNE, deterministic=False)
    .prefetch(AUTOTUNE)
  )


# Timing.


def reader(dataset: tf.data.Dataset, block: int = 50) -> Callable[[], int]:
  """Returns a function that reads `block` elements and returns their rows."""
  iterator = iter(dataset)

  @tf.function
  def take() -> tf.Tensor:
    rows = tf.constant(0)
    for _ in tf.range(block):
      element = next(iterator)
      rows += tf.shape(tf.nest.flatten(element)[0])[0]
    return rows

  return lambda: int(take())


def speed(take: Callable[[], int], seconds: float) -> float:
  """Returns examples per second."""
  begun, rows = time.perf_counter(), 0
  while time.perf_counter() - begun < seconds:
    rows += take()
  return rows / (time.perf_counter() - begun)


def race(
  title: str,
  contestants: dict[str, tf.data.Dataset],
  asks: Sequence[tuple[str, str, str, float | None]],
) -> dict[str, Any]:
  """Prints and returns all speeds; `asks` are as in `updates.Case`."""
  takes = {name: reader(dataset) for name, dataset in contestants.items()}
  for take in takes.values():
    speed(take, 1.0)
  speeds: dict[str, list[float]] = {name: [] for name in takes}
  names = list(takes)
  for turn in range(flags.FLAGS.rounds):
    first = turn % len(names)
    for name in names[first:] + names[:first]:
      gc.collect()
      time.sleep(0.3)  # lets prefetching of the others end
      speeds[name].append(speed(takes[name], _SECONDS.value))
  print(f'\n{title}\n{"":44} examples/s')
  for name, values in speeds.items():
    print(f'  {name:42} {statistics.median(values):10,.0f}')
  figures = [
    Figure(
      f'{a} / {b}',
      [x / y for x, y in zip(speeds[a], speeds[b], strict=True)],
      relation,
      asked,
    )
    for a, b, relation, asked in asks
  ]
  return {'examples_per_second': speeds, **updates.publish(figures)}


def resident() -> float:
  """Returns the resident memory of this process in MB."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.partition('VmRSS:')[2].split()[0]) / 1024


# Sections.


def time_records(directory: pathlib.Path) -> dict[str, Any]:
  paths = write_images(directory)
  return race(
    f'records: {EXAMPLES:,} in {SHARDS} files, batch {BATCH_SIZE}',
    {
      'tftrain': ours(paths).dataset(0),
      'one by one': one_by_one(paths),
      'tuned': tuned(paths),
      'tuned, usual shuffle': tuned_usual_shuffle(paths),
    },
    [
      ('tftrain', 'one by one', '>=', 6.0),
      ('tftrain', 'tuned', '>=', 0.95),
      ('tftrain', 'tuned, usual shuffle', '>=', 0.95),
    ],
  )


def time_arrays(directory: pathlib.Path) -> dict[str, Any]:
  del directory
  images, labels = images_and_labels()
  rows = images.reshape(EXAMPLES, -1).astype('float32'), labels
  hand = (
    tf.data.Dataset.from_tensor_slices(rows)
    .shuffle(WINDOW)
    .repeat()
    .batch(BATCH_SIZE)
    .prefetch(AUTOTUNE)
  )
  return race(
    f'arrays: {EXAMPLES:,} rows of 784 floats, batch {BATCH_SIZE}',
    {
      'Arrays': tftrain.Arrays(rows, BATCH_SIZE).dataset(0),
      'InMemory': tftrain.data.Examples(
        tftrain.data.InMemory(rows), BATCH_SIZE
      ).dataset(0),
      'hand': hand,
    },
    [('Arrays', 'hand', '>=', 2.0), ('InMemory', 'hand', '>=', None)],
  )


def seconds_to_first(pipeline: tftrain.data.Pipeline, step: int) -> float:
  gc.collect()
  begun = time.perf_counter()
  next(iter(pipeline.dataset(0, step)))
  return time.perf_counter() - begun


def time_resume(directory: pathlib.Path) -> dict[str, Any]:
  records = tftrain.data.TFRecords(
    write_tiny(directory), features={'number': 'int64'}
  )
  rows = np.zeros((TINY, 8), 'float32')
  pipelines = {
    'TFRecords': tftrain.data.Examples(records, BATCH_SIZE),
    'Arrays': tftrain.Arrays(rows, BATCH_SIZE),
    'InMemory': tftrain.data.Examples(tftrain.data.InMemory(rows), BATCH_SIZE),
  }
  step = RESUMED_AT // BATCH_SIZE
  begin: dict[str, list[float]] = {name: [] for name in pipelines}
  later: dict[str, list[float]] = {name: [] for name in pipelines}
  for name, pipeline in pipelines.items():
    seconds_to_first(pipeline, 0)
    for _ in range(flags.FLAGS.rounds):
      begin[name].append(seconds_to_first(pipeline, 0))
      later[name].append(seconds_to_first(pipeline, step))
  print(f'\nresume: at record {RESUMED_AT:,} of {TINY:,}')
  figures = [
    Figure('TFRecords, seconds at record 0', begin['TFRecords']),
    Figure('TFRecords, seconds', later['TFRecords'], '<=', 12.0),
  ]
  for name in ('Arrays', 'InMemory'):
    found = [b / a for a, b in zip(begin[name], later[name], strict=True)]
    figures += [
      Figure(f'{name}, seconds', later[name]),
      Figure(f'{name}, as many times as at step 0', found, '<=', 1.5),
    ]
  return updates.publish(figures)


def time_memory(directory: pathlib.Path) -> dict[str, Any]:
  """Measures memory; warm after half the epochs (allocator pools are full)."""
  per_epoch = EXAMPLES // BATCH_SIZE
  data = ours(write_images(directory))
  take = reader(data.dataset(0), per_epoch)
  sizes = []
  for _ in range(_EPOCHS.value):
    take()
    gc.collect()
    sizes.append(resident())
  warm = sizes[len(sizes) // 2 - 1 :]
  slope = np.polyfit(range(len(warm)), warm, 1)[0]
  print(f'\nmemory: MB, {_EPOCHS.value} epochs of {EXAMPLES:,} records')
  return {
    'megabytes': sizes,
    **updates.publish(
      [
        Figure('after the first', sizes[:1]),
        Figure('after half of them', warm[:1]),
        Figure('after the last', warm[-1:]),
        Figure('last / half', [warm[-1] / warm[0]], '<=', 1.05),
        Figure('MB per epoch, second half', [float(slope)]),
      ]
    ),
  }


def time_text(directory: pathlib.Path) -> dict[str, Any]:
  wanted = round(_TEXT_GB.value * 1e9)
  free = shutil.disk_usage(directory).free
  if free < 1.2 * wanted:
    raise app.UsageError(
      f'--text_gb={_TEXT_GB.value} needs more than the {free / 1e9:.1f} GB '
      f'that are free in {directory}'
    )
  path = directory / 'lines.txt'
  size = write_lines(path, wanted)
  before = resident()
  begun = time.perf_counter()
  lines = tftrain.data.TextLines(path)
  counted = time.perf_counter() - begun
  data = tftrain.data.Examples(lines, 1024, epochs=1)
  peak, seen = before, 0
  begun = time.perf_counter()
  for number, batch in enumerate(data.dataset(0)):
    seen += len(batch['text'])
    if number % 100 == 0:
      peak = max(peak, resident())
  seconds = time.perf_counter() - begun
  path.unlink()
  assert seen == lines.num_examples, (seen, lines.num_examples)
  print(f'\ntext: {size / 1e9:.2f} GB, {seen:,} lines')
  return updates.publish(
    [
      Figure('seconds to count the lines', [counted]),
      Figure('MB per second', [size / 1e6 / seconds]),
      Figure('MB of memory more than before', [peak - before], '<=', 256.0),
    ]
  )


def doubled(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  return {**example, 'image': tf.cast(example['image'], tf.float32) * 2}


def is_low(example: dict[str, tf.Tensor]) -> tf.Tensor:
  return example['label'] < 9


def time_stages(directory: pathlib.Path) -> dict[str, Any]:
  """Times each stage as the difference of cumulative medians."""
  data = ours(write_images(directory), map=doubled, filter=is_low)
  takes = {}
  for name, dataset in data.stages(0):
    first = tf.nest.flatten(dataset.element_spec)[0]
    if first.shape.rank == 0:  # unbatched
      dataset = dataset.ragged_batch(BATCH_SIZE)
    takes[name] = reader(dataset)
  times: dict[str, list[float]] = {name: [] for name in takes}
  for _ in range(flags.FLAGS.rounds):
    for name, take in takes.items():
      times[name].append(1e6 / speed(take, _SECONDS.value))
  print(f'\nstages: microseconds per example\n{"":15} total   own')
  before = 0.0
  for name, values in times.items():
    total = statistics.median(values)
    print(f'  {name:10} {total:8.2f} {total - before:5.2f}')
    before = total
  return {'microseconds_per_example': times}


RUNS = {
  'records': time_records,
  'arrays': time_arrays,
  'resume': time_resume,
  'memory': time_memory,
  'text': time_text,
  'stages': time_stages,
}


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'what is {argv[1]!r}?')
  chosen = flags.FLAGS.only or SECTIONS
  if not set(chosen) <= set(SECTIONS):
    raise app.UsageError(f'--only takes some of {", ".join(SECTIONS)}')
  tf.get_logger().setLevel('ERROR')
  logging.set_verbosity(logging.WARNING)
  ran = {
    'tensorflow': tf.__version__,
    'cores': os.cpu_count(),
    'rounds': flags.FLAGS.rounds,
    'seconds': _SECONDS.value,
  }
  print(', '.join(f'{key} {value}' for key, value in ran.items()))
  report = {}
  with tempfile.TemporaryDirectory() as directory:
    for name in SECTIONS:
      if name in chosen:
        report[name] = RUNS[name](pathlib.Path(directory))
  if flags.FLAGS.json:
    text = json.dumps({**ran, 'sections': report}, indent=2) + '\n'
    pathlib.Path(flags.FLAGS.json).write_text(text, encoding='utf-8')


if __name__ == '__main__':
  app.run(main)

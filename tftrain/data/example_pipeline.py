"""Examples: makes batches from a source of single examples."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import copy
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.data import _cursor
from tftrain.data import _data_service
from tftrain.data import _host_rows
from tftrain.data import _splits
from tftrain.data import batching
from tftrain.data import pipeline as pipeline_lib
from tftrain.data import serving_decoder
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import source as source_lib
from tftrain.data.sources import transforms
from tftrain.distribute import row_sharding
from tftrain.interop import autograph

# Examples decoded together before they are unbatched.
_CHUNK = 256
# The shuffle window in records, and the number of examples of an endless source
# that a filter is tested on.
_WINDOW, _MANY = 10_000, 100_000


class Examples(pipeline_lib.Pipeline):
  """Batches of the examples of a source: split, shuffled, mapped, filtered.

  >>> Examples(TFRecords('/data/train-*'), 128, select=('image', 'label'))

  In training the examples are shuffled anew each epoch and batches straddle
  epoch ends; for evaluation (`training=False`) all examples come once, in
  order. The order is a function of (seed, step), for any number of replicas. If
  examples are filtered, bucketed or packed, the beginning of a step is a cursor
  that checkpoints save.

  Args:
    source: Source of the examples.
    batch_size: Rows of a global batch.
    training: True shuffles and repeats.
    epochs: Epochs until the data ends; None repeats without end in training.
    map: Maps one example to another: `map(example)` or `map(example, seed)`.
      `seed`, int32 `[2]`, differs for each example and epoch; it is meant for
      tf.random.stateless_uniform and the like.
    filter: Returns True for each mapped example to keep.
    select: Names of features to make a tuple of: `('image', 'label')`.
    batcher: `Padded`, `Bucketed`, `Packed` or `Ragged`, if lengths vary.
    map_batch: Maps one batch to another; much faster than `map`.
    shuffle: Size of a shuffle window in records, for sources of files; None is
      10,000, or fewer if `ram_budget_gb` is exceeded. Sources with random
      access are shuffled as a whole. 0 turns shuffling off.
    holdout: Share of the examples to hold out before any shuffle.
    subset: `train` or `holdout`, the part of the examples to read.
    cache: True keeps all examples in memory, before `map`.
    remainder: Treatment of a last batch that is not full: `keep`, `drop`, or
      `pad` with rows of weight zero. With `pad`, (x, y) becomes
      (x, y, weights), and a dictionary gets `weights`.
    shard: (host, hosts), the part of the data that this host reads.
      `batch_size` remains the global one.
    prefetch: Number of batches made ahead.
    threads: Threads of a private pool for this pipeline; None is TensorFlow's
      pool.
    ram_budget_gb: Memory for a shuffle window, in GB; the rest of the pipeline
      needs a few batches.
    service: Address of a tf.data service that makes the batches,
      `grpc://host:port`.

  Raises:
    ConfigError: If an argument is invalid, or arguments exclude each other.
    InputError: If the examples of `source` do not fit the arguments.

  Attributes:
    source: The source that is read, after `holdout`, `shard` and `cache`.
    select: As given, a tuple or None.
  """

  def __init__(
    self,
    source: source_lib.Source,
    batch_size: int,
    *,
    training: bool = True,
    epochs: int | None = None,
    map: Callable[..., Any] | None = None,
    filter: Callable[..., Any] | None = None,
    select: Sequence[str] | None = None,
    batcher: batching.Batcher | None = None,
    map_batch: Callable[..., Any] | None = None,
    shuffle: int | None = None,
    holdout: float | None = None,
    subset: str = 'train',
    cache: bool = False,
    remainder: str = 'keep',
    shard: tuple[int, int] = (0, 1),
    prefetch: int = 2,
    threads: int | None = None,
    ram_budget_gb: float = 0.25,
    service: str | None = None,
  ):
    given = dict(locals())
    del given['self']
    self._given = given
    errors.check_count('batch_size', batch_size, errors.InputError)
    if epochs is not None:
      errors.check_count('epochs', epochs, errors.InputError)
    if remainder not in ('keep', 'drop', 'pad'):
      raise errors.ConfigError(
        f"Examples.remainder = {remainder!r}; give 'keep', 'drop' or 'pad'"
      )
    self.source = _splits.part_of(source, holdout, subset, shard, cache)
    self.batch_size = self._size = batch_size
    self._rows = self._full = _splits.share_of(batch_size, shard)
    self._cut: row_sharding.Cut | None = None
    self._training = training
    self._epochs = epochs if training else 1
    self._map = map
    self._filter = filter
    self.select = None if select is None else tuple(select)
    self._batcher = batcher
    self._map_batch = map_batch
    self._shuffle = 0
    if training:
      fitting = 1e9 * ram_budget_gb / max(self.source.record_bytes, 1.0)
      window = max(1, min(_WINDOW, int(fitting)))
      self._shuffle = window if shuffle is None else shuffle
    self._remainder = remainder
    self._prefetch = prefetch
    self._options = _options(threads)
    self._service = service
    _data_service.check(service, self._epochs)
    self.repeats = self._epochs is None
    self.pads = remainder == 'pad'
    self._note_batcher()
    self.lost = self.source.lost
    self._check()
    self._count_steps()

  def over(self, source: source_lib.Source) -> 'Examples':
    """Returns a pipeline of other examples: all of them, once, in order.

    The processing of an example stays: `map`, `select`, `map_batch` and the
    batcher. The selection of examples is dropped: `filter`, `holdout`, `shard`,
    shuffling, and dropping the remainder. `Bucketed` becomes `Padded`, which
    keeps the order of the examples.
    """
    other = copy.copy(self)
    other.source = _splits.part_of(source, None, 'train', (0, 1), False)
    other.lost = other.source.lost
    other._rows = other._full = self._size
    other._training, other._epochs, other._shuffle = False, 1, 0
    other._filter = other._service = None
    if isinstance(self._batcher, batching.Bucketed):
      given = self._batcher
      too_long, length = given.too_long, None
      if too_long == 'truncate':  # only a fixed length truncates
        length = given.boundaries[-1]
      other._batcher = batching.Padded(
        length, value=given.value, too_long=too_long
      )
    if self._remainder == 'drop':
      other._remainder = 'keep'
    other.repeats, other.num_examples, other.num_steps = False, None, None
    other._note_batcher()
    other._check()
    other._count_steps()
    return other

  def options(self) -> Mapping[str, Any]:
    changeable = ('batch_size', 'prefetch', 'threads')
    return {name: self._given[name] for name in changeable}

  def with_options(self, **options: Any) -> 'Examples':
    return Examples(**{**self._given, **options})

  def _note_batcher(self) -> None:
    self.rearranges = isinstance(
      self._batcher, batching.Bucketed | batching.Packed
    )
    self.has_cursor = self._filter is not None or self.rearranges

  def _check(self) -> None:
    """Builds the pipeline once, to fail early; sets `element_spec`."""
    with pipeline_lib.explained(self):
      self._refuse_random()
      if self._filter is not None:
        self._find_one()
      dataset = self.dataset(0)
    spec = dataset.element_spec
    self.element_spec = spec[0] if self.has_cursor else spec
    for path, leaf in _named_specs(self.element_spec):
      if isinstance(leaf, tf.RaggedTensorSpec) and self._batcher is None:
        raise errors.InputError(
          f'cannot batch {path}: its length varies; give Examples(batcher=...) '
          'Padded, Bucketed, Packed or Ragged'
        )

  @autograph.unconverted
  def _refuse_random(self) -> None:
    spec = self.source.element_spec
    if self._map is not None:
      transforms.refuse_random('Examples.map', spec, self._map)
      chunks = self._chunks(shuffle_lib.Order(epochs=self._epochs))
      spec = self._numbered(chunks).element_spec[1]
    if self._filter is not None:
      transforms.refuse_random('Examples.filter', spec, self._filter)
    if self._map_batch is not None:
      plain = copy.copy(self)
      plain._map_batch, plain._service, plain._remainder = None, None, 'keep'
      spec = plain.dataset(0).element_spec
      spec = spec[0] if self.has_cursor else spec
      transforms.refuse_random('Examples.map_batch', spec, self._map_batch)

  def _find_one(self) -> None:
    endless = self.source.endless
    order = shuffle_lib.Order(epochs=None if endless else 1)
    looked_at = self._numbered(self._chunks(order))
    count: Any = self.source.num_examples or 'all'
    if endless:
      looked_at, count = looked_at.take(_MANY), f'the first {_MANY}'
    kept = shuffle_lib.without_autotuning(self._filtered(looked_at).take(1))
    if next(iter(kept), None) is None:
      raise errors.InputError(
        f'Examples.filter keeps 0 of {count} examples; correct it, or the '
        'source'
      )

  def _count_steps(self) -> None:
    packed = isinstance(self._batcher, batching.Packed)
    if self._filter is not None or packed:
      return
    self.num_examples = self.source.num_examples
    if self.num_examples is None or self._epochs is None:
      return
    total = self._epochs * self.num_examples
    dropped = self._remainder == 'drop'
    self.num_steps = total // self._rows if dropped else -(-total // self._rows)

  # The stages of the dataset.

  @autograph.unconverted
  def dataset(
    self, seed: int, start_step: int = 0, cursor: Sequence[int] | None = None
  ) -> tf.data.Dataset:
    *_, (_, dataset) = self.stages(seed, start_step, cursor)
    if self._service is not None:
      dataset = _data_service.distributed(
        dataset, self._service, [self.fingerprint(), seed, start_step, cursor]
      )
    ahead = dataset.prefetch(self._prefetch).with_options(self._options)
    return shuffle_lib.without_autotuning(ahead)

  @autograph.unconverted
  def stages(
    self, seed: int, start_step: int = 0, cursor: Sequence[int] | None = None
  ) -> list[tuple[str, tf.data.Dataset]]:
    """Returns (name, dataset) of each stage, from reading to whole batches."""
    order = shuffle_lib.Order(
      seed=seed if self._shuffle else None,
      epochs=self._epochs,
      window=self._shuffle or _CHUNK,
    )
    begin, skipped = start_step * self._rows, 0
    if cursor is not None:
      begin, skipped = (int(number) for number in cursor)
    found: list[tuple[str, tf.data.Dataset]] = []
    if self._cut is not None:
      dataset: Any = self._own_rows(order, start_step, seed)
    elif self._map is None and not self.has_cursor:
      dataset = self.source.chunks(self._rows, order, begin)
      found.append(('read', dataset))
      if self._remainder == 'drop' and self._epochs is not None:
        dataset = dataset.filter(lambda *b: shuffle_lib.count(b) == self._rows)
    else:
      dataset = self._chunks(order, begin)
      found.append(('read', dataset))
      dataset = self._numbered(dataset, begin, seed)
      found.append(('map', dataset))
      if self._filter is not None:
        dataset = self._filtered(dataset)
        found.append(('filter', dataset))
      dataset = self._batched(dataset, seed, skipped)
    if self._finishes():  # an identity map would take a tenth of the time
      dataset = dataset.map(
        self._finished, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
      )
    found.append(('batch', dataset))
    return found

  def _chunks(
    self, order: shuffle_lib.Order, begin: int = 0
  ) -> tf.data.Dataset:
    """Returns chunks of examples, to be unbatched."""
    return self.source.chunks(min(_CHUNK, self._rows), order, begin)

  def _numbered(
    self, chunks: tf.data.Dataset, begin: int = 0, seed: int = 0
  ) -> tf.data.Dataset:
    """Returns a dataset of (position, mapped example)."""
    numbered = chunks.unbatch().enumerate(begin)
    return numbered if self._map is None else self._mapped(numbered, seed)

  def _mapped(self, numbered: tf.data.Dataset, seed: int) -> tf.data.Dataset:
    assert self._map is not None
    function = self._map
    seeded = transforms.takes_seed(function)

    def apply(position: tf.Tensor, example: Any) -> Any:
      convert = autograph.converted(function)
      if seeded:
        return position, convert(example, shuffle_lib.seed_of(seed, position))
      return position, convert(example)

    return numbered.map(
      apply, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )

  def _filtered(self, numbered: tf.data.Dataset) -> tf.data.Dataset:
    function = self._filter
    assert function is not None
    return numbered.filter(
      lambda _, example: autograph.converted(function)(example)
    )

  def _batched(
    self, numbered: tf.data.Dataset, seed: int, skipped: int
  ) -> tf.data.Dataset:
    """Returns unfinished batches, or (batch, cursor) if there is a cursor."""
    drop = self._remainder == 'drop' or self._epochs is None
    order_seed = seed if self._shuffle else None
    if isinstance(self._batcher, batching.Bucketed):
      return _cursor.bucketed(
        numbered, self._batcher, self._rows, order_seed, skipped, drop=drop
      )
    if isinstance(self._batcher, batching.Packed):
      return _cursor.packed(
        numbered, self._batcher, self._rows, order_seed, skipped, drop=drop
      )
    batches = numbered.ragged_batch(self._rows, drop_remainder=drop)
    if self.has_cursor:
      return _cursor.filtered(batches)
    return batches.map(lambda _, examples: examples)

  # One worker's rows of each batch.

  def part(self, share: row_sharding.Share) -> 'Examples | None':
    fixed = isinstance(self._batcher, batching.Padded) and self._batcher.length
    if (
      self.has_cursor
      or not (self._batcher is None or fixed)
      or self._map_batch is not None  # may mix rows
      or self._service is not None
      or self._rows != self._size
      or self._size < share.replicas
    ):
      return None
    other = copy.copy(self)
    first, end = share.of(self._size)
    other._full = end - first
    pads = self._remainder == 'pad'
    other._cut = share.of_filled(self._size) if pads else share.of
    if other._own_rows(shuffle_lib.Order(), 0, 0) is None:
      return None
    other.element_spec = other.dataset(0).element_spec
    return other

  def _own_rows(
    self, order: shuffle_lib.Order, start_step: int, seed: int
  ) -> tf.data.Dataset | None:
    assert self._cut is not None
    return _host_rows.batches(
      self.source,
      self._size,
      order,
      start_step,
      self._cut,
      drop=self._remainder == 'drop',
      mapped=self._map and (lambda numbered: self._mapped(numbered, seed)),
    )

  def _finishes(self) -> bool:
    tasks = (self._batcher, self.select, self._map_batch)
    return self._remainder == 'pad' or any(task is not None for task in tasks)

  def _finished(self, batch: Any, *cursor: Any) -> Any:
    """Returns a batch as the Task gets it."""
    if not self.has_cursor and cursor:  # tf.data unpacks a tuple
      batch, cursor = (batch, *cursor), ()
    done = isinstance(self._batcher, batching.Bucketed | batching.Packed)
    if self._batcher is not None and not done:
      batch = self._batcher.collate(batch)
    if self.select is not None:
      batch = transforms.selected(batch, self.select)
    if self._map_batch is not None:
      batch = autograph.converted(self._map_batch)(batch)
    if self._remainder == 'pad':
      batch = transforms.filled(batch, self._full)
    return (batch, *cursor) if self.has_cursor else batch

  # Information for exports, checkpoints and error messages.

  def decoder(self) -> serving_decoder.Decoder | None:
    if self._batcher is not None:
      return None
    plain = copy.copy(self)
    plain._remainder, plain.has_cursor = 'keep', False
    one = self._numbered(
      self._chunks(shuffle_lib.Order(epochs=1))
    ).element_spec[1]
    return serving_decoder.make(self.source, self._map, one, plain._finished)

  @property
  def steps_per_epoch(self) -> float | None:
    # num_examples and _rows both count this host's part.
    return None if self.num_examples is None else self.num_examples / self._rows

  def fingerprint(self) -> Mapping[str, Any]:
    return {
      'kind': 'examples',
      'source': dict(self.source.fingerprint()),
      'batch_size': self.batch_size,
      'training': self._training,
      'shuffle': self._shuffle,
      'batcher': _batcher_facts(self._batcher),
      'functions': [
        getattr(f, '__qualname__', type(f).__name__)
        for f in (self._map, self._filter, self._map_batch)
        if f is not None
      ],
    }

  def explain(self, error: BaseException) -> str | None:
    return batching.explain(str(error)) or self.source.diagnose()


def _options(threads: int | None) -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.OFF
  )
  if threads is not None:
    options.threading.private_threadpool_size = threads
  return options


def _named_specs(spec: Any) -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf) of a nest of dictionaries and tuples."""
  if isinstance(spec, Mapping):
    for name, part in spec.items():
      yield from ((repr(name), leaf) for _, leaf in _named_specs(part))
  elif isinstance(spec, tuple | list):
    for index, part in enumerate(spec):
      yield from ((f'part {index}', leaf) for _, leaf in _named_specs(part))
  else:
    yield 'it', spec


def _batcher_facts(batcher: batching.Batcher | None) -> Any:
  if batcher is None:
    return None
  return [type(batcher).__name__, dict(vars(batcher))]

"""Mixtures of sources by weight, and sources mapped by a function."""

from collections.abc import Callable
from collections.abc import Mapping
import copy
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import source as source_lib
from tftrain.data.sources import transforms
from tftrain.interop import autograph

_CHUNK = 64


class Mapped(source_lib.Source):
  """A source whose examples are mapped by a function, one to one.

  Args:
    source: Source of the examples.
    function: Maps one example to another; must not be random, see
      `Examples.map`.

  Raises:
    InputError: If `function` draws random numbers.
  """

  def __init__(self, source: source_lib.Source, function: Callable[[Any], Any]):
    transforms.refuse_random('Mapped.function', source.element_spec, function)
    self._source = source
    self._function = function
    self._name = getattr(function, '__qualname__', type(function).__name__)
    self.num_examples = source.num_examples
    self.lost = source.lost
    self.endless = source.endless
    self.record_bytes = source.record_bytes
    self.element_spec = (
      self.chunks(1, shuffle_lib.Order()).unbatch().element_spec
    )

  def chunks(
    self, size: int, order: shuffle_lib.Order, start: int = 0
  ) -> tf.data.Dataset:
    examples = self._source.chunks(_CHUNK, order, start).unbatch()
    return examples.map(
      lambda *parts: autograph.converted(self._function)(
        parts if len(parts) > 1 else parts[0]
      ),
      num_parallel_calls=tf.data.AUTOTUNE,
      deterministic=True,
    ).ragged_batch(size, drop_remainder=order.epochs is None)

  def fingerprint(self) -> Mapping[str, Any]:
    return {'map': self._name, 'of': self._source.fingerprint()}

  def shard(self, index: int, count: int) -> 'Mapped':
    return self._of(self._source.shard(index, count))

  def split(self, holdout: float, subset: str) -> 'Mapped':
    return self._of(self._source.split(holdout, subset))

  def diagnose(self) -> str | None:
    return self._source.diagnose()

  def _of(self, source: source_lib.Source) -> 'Mapped':
    part = copy.copy(self)
    part._source = source
    part.num_examples = source.num_examples
    return part


class Mixture(source_lib.Source):
  """Examples of several sources, in fixed proportions and without end.

  Each part repeats independently, so the proportions hold after a small part
  has been read. In each round of examples every part has its share, rounded to
  whole examples; only the order within a round is random. The mixture is
  therefore a function of (seed, position), and starts at any position as fast
  as its parts do.

  >>> Mixture({'en': en, 'fr': fr}, weights={'en': 3, 'fr': 1})

  Args:
    parts: Name -> source; all must have the same `element_spec`, see `Mapped`.
    weights: Name -> share, in any unit; None takes the number of examples.
    temperature: Flattens the shares to share ** (1 / temperature) (Arivazhagan
      et al. 2019). 1 leaves them unchanged; high temperatures approach equal
      shares. None is 1.

  Raises:
    ConfigError: If `parts` is empty, `weights` does not name exactly the parts,
      a weight is negative, all are 0, or `temperature` is not above 0.
    InputError: If the specs of the parts differ, or if `weights` is None and
      the number of examples of a part is unknown.
  """

  endless = True

  def __init__(
    self,
    parts: Mapping[str, source_lib.Source],
    weights: Mapping[str, float] | None = None,
    *,
    temperature: float | None = None,
  ):
    if not parts:
      raise errors.ConfigError('Mixture.parts is empty; give {name: source}')
    shares = _shares(parts, weights, temperature)
    self._parts = {name: parts[name] for name, share in shares.items() if share}
    whole = sum(shares.values())
    self._rates = [shares[name] / whole for name in self._parts]
    self._bounds = np.concatenate([[0.0], np.cumsum(self._rates)[:-1], [1.0]])
    # Long enough for about 8 examples of the rarest part, within limits.
    self._round = int(min(65536, max(256, np.ceil(8 / min(self._rates)))))
    first, spec = next((n, p.element_spec) for n, p in self._parts.items())
    for name, part in self._parts.items():
      if part.element_spec != spec:
        raise errors.InputError(
          f'Mixture: examples of {name!r} are {part.element_spec}, those of '
          f'{first!r} {spec}; make them alike with tftrain.data.Mapped'
        )
    self.element_spec = spec
    self.record_bytes = sum(part.record_bytes for part in self._parts.values())
    self.lost = sum(part.lost for part in self._parts.values())

  def chunks(
    self, size: int, order: shuffle_lib.Order, start: int = 0
  ) -> tf.data.Dataset:
    if order.epochs is not None:
      raise errors.InputError(
        'a Mixture has no epochs: it goes on for ever; give the run steps, and '
        'evaluate on its parts'
      )
    begin, inside = divmod(start, self._round)
    drawn = self._drawn_before(begin)
    head = self._choices(tf.constant(begin, tf.int64), order)[:inside].numpy()
    starts = drawn + np.bincount(head, minlength=len(drawn))
    examples = [
      part.chunks(_CHUNK, order, int(at)).unbatch()
      for part, at in zip(self._parts.values(), starts, strict=True)
    ]
    choices = (
      tf.data.Dataset.range(begin, source_lib.FOR_EVER)
      .map(lambda number: self._choices(number, order))
      .unbatch()
      .skip(inside)
    )
    mixed = tf.data.Dataset.choose_from_datasets(examples, choices)
    return mixed.ragged_batch(size, drop_remainder=True)

  def fingerprint(self) -> Mapping[str, Any]:
    return {
      'kind': 'mixture',
      'rates': self._rates,
      'parts': {n: part.fingerprint() for n, part in self._parts.items()},
    }

  def shard(self, index: int, count: int) -> 'Mixture':
    part = copy.copy(self)
    part._parts = {n: p.shard(index, count) for n, p in self._parts.items()}
    return part

  def split(self, holdout: float, subset: str) -> 'Mixture':
    part = copy.copy(self)
    part._parts = {n: p.split(holdout, subset) for n, p in self._parts.items()}
    return part

  def diagnose(self) -> str | None:
    found = (part.diagnose() for part in self._parts.values())
    return next((text for text in found if text), None)

  def _drawn_before(self, number: int) -> Any:
    """Returns the examples of each part before a round, int64 `[parts]`."""
    ends = np.floor(number * self._round * self._bounds + 0.5)
    return np.diff(ends).astype(np.int64)

  def _choices(self, number: tf.Tensor, order: shuffle_lib.Order) -> tf.Tensor:
    """Returns the part index of each example of a round, int64 `[round]`."""

    def before(rounds: tf.Tensor) -> tf.Tensor:
      ends = tf.cast(rounds * self._round, tf.float64) * self._bounds
      ends = tf.cast(tf.floor(ends + 0.5), tf.int64)
      return ends[1:] - ends[:-1]

    quotas = before(number + 1) - before(number)
    sorted_choices = tf.repeat(
      tf.range(len(self._rates), dtype=tf.int64), quotas
    )
    seed = shuffle_lib.seed_of(order.seed or 0, number)
    index = shuffle_lib.permuted(
      tf.range(self._round, dtype=tf.int64),
      tf.concat([seed, [0]], 0),
      self._round,
    )
    return tf.gather(sorted_choices, index)


def _shares(
  parts: Mapping[str, source_lib.Source],
  weights: Mapping[str, float] | None,
  temperature: float | None,
) -> dict[str, float]:
  if weights is not None and set(weights) != set(parts):
    raise errors.ConfigError(
      f'Mixture.weights is of {", ".join(weights)}, the parts are '
      f'{", ".join(parts)}; give each a weight'
    )
  shares: dict[str, float] = {}
  for name, part in parts.items():
    share = part.num_examples if weights is None else weights[name]
    if share is None:
      raise errors.InputError(
        f'Mixture: how many examples {name!r} has is not known; give weights'
      )
    shares[name] = float(share)
  if min(shares.values()) < 0 or not any(shares.values()):
    raise errors.ConfigError(
      f'Mixture.weights = {shares}; give numbers of at least 0, not all 0'
    )
  if temperature is not None:
    if temperature <= 0:
      raise errors.ConfigError(
        f'Mixture.temperature = {temperature}; give a number above 0'
      )
    shares = {n: share ** (1 / temperature) for n, share in shares.items()}
  return shares

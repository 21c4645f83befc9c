"""Generator: a source of the examples that a Python generator yields."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from absl import logging
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import _numpy_examples
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import source as source_lib


class Generator(source_lib.Source):
  """Examples that a function yields, one by one.

  The function must yield the same examples at every call: a resumed run calls
  it again and skips the examples it has seen. If examples can be found by
  index, `RandomAccess` resumes at no cost.

  Args:
    make: Returns an iterable of examples.
    features: Name -> spec as in `TFRecords`, needed if lengths vary; None takes
      dtypes and shapes from the first example.

  Raises:
    InputError: If `make` yields nothing, or can be called only once.
  """

  def __init__(
    self,
    make: Callable[[], Iterable[Any]],
    features: Mapping[str, str] | None = None,
  ):
    if not callable(make):
      raise errors.InputError(
        f'Generator takes a function, got {type(make).__name__}; a generator '
        'itself can be read only once'
      )
    self._make = make
    self._name = getattr(make, '__qualname__', type(make).__name__)
    begun = iter(make())
    first = next(begun, None)
    if first is None:
      raise errors.InputError(f'{self._name}() yields 0 examples')
    if iter(make()) is begun:
      raise errors.InputError(
        f'{self._name}() yields nothing the second time; make what it reads '
        'inside of it'
      )
    self.element_spec = _numpy_examples.spec_for(features, first)
    self._failure: str | None = None

  def chunks(
    self, size: int, order: shuffle_lib.Order, start: int = 0
  ) -> tf.data.Dataset:
    examples = tf.data.Dataset.from_generator(
      self._examples, output_signature=self.element_spec
    )
    windows = examples.ragged_batch(order.window)
    last = source_lib.FOR_EVER if order.epochs is None else order.epochs
    whole = tf.data.Dataset.range(last).flat_map(
      lambda epoch: shuffle_lib.shuffled(windows, order, epoch)
    )
    if start:
      logging.info(
        '%s() is called again to pass over %d examples.', self._name, start
      )
      rest = whole.unbatch().skip(start)
      return rest.ragged_batch(size, drop_remainder=order.epochs is None)
    return whole.rebatch(size, drop_remainder=order.epochs is None)

  def fingerprint(self) -> Mapping[str, Any]:
    return {'kind': 'generator', 'name': self._name}

  def diagnose(self) -> str | None:
    return self._failure

  def _examples(self) -> Iterator[Any]:
    number = 0
    try:
      for example in self._make():
        yield _numpy_examples.fitted(example, self.element_spec)
        number += 1
    except Exception as error:  # kept: TensorFlow raises a dump of it
      said = errors.one_line(error)
      self._failure = f'{self._name}() example {number}: {said}'
      raise

"""Batches that the user makes: a tf.data.Dataset, or any re-iterable."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.inputs import pipelines


class Batches(pipelines.Pipeline):
  """A dataset of batches, used as it is.

  A resumed run skips the batches it has seen, at the cost of making them
  again; that is exact as long as the dataset yields the same batches each time
  it is iterated (seed its shuffles, use stateless random ops in its maps).

  Args:
    data: A zero-argument function that makes a `tf.data.Dataset` of global
      batches, such a dataset, or any re-iterable of batches (a list of NumPy
      tuples).
    repeat: Whether to start over when the data ends.

  Raises:
    InputError: The data yields no batch, or is an iterator that can be read
      only once.
  """

  def __init__(self, data: Any, *, repeat: bool = True):
    self._make = _dataset_factory(data)
    self._repeat = repeat
    dataset = self._make()
    self.element_spec = dataset.element_spec
    leaves = tf.nest.flatten(self.element_spec)
    if any(leaf.shape.rank == 0 for leaf in leaves):
      raise errors.InputError(
        'the dataset yields single examples, not batches; end it with .batch(n)'
      )
    cardinality = int(dataset.cardinality())
    if cardinality == 0 or next(iter(dataset.take(1)), None) is None:
      raise errors.InputError(
        'the dataset yields 0 batches; check its files and filters'
      )
    if leaves[0].shape.rank:
      self.batch_size = leaves[0].shape[0]
    self.repeats = repeat or cardinality == tf.data.INFINITE_CARDINALITY
    if cardinality > 0 and not repeat:
      self.num_steps = cardinality

  def dataset(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
    tf.random.set_seed(seed)
    dataset = self._make()
    if self._repeat and dataset.cardinality() != tf.data.INFINITE_CARDINALITY:
      dataset = dataset.repeat()
    return dataset.skip(start_step) if start_step else dataset

  def fingerprint(self) -> Mapping[str, Any]:
    return {'kind': 'batches', 'spec': str(self.element_spec)}


def as_pipeline(data: Any, *, training: bool) -> pipelines.Pipeline:
  """Takes what a user has for data and returns a Pipeline over it."""
  if isinstance(data, pipelines.Pipeline):
    return data
  return Batches(data, repeat=training)


def _dataset_factory(data: Any) -> Callable[[], tf.data.Dataset]:
  if isinstance(data, tf.data.Dataset):
    return lambda: data
  if callable(data):
    make: Callable[[], Any] = data
    made = make()
    if isinstance(made, tf.data.Dataset):
      return make
    return _dataset_factory(made)
  if isinstance(data, np.ndarray) or not hasattr(data, '__iter__'):
    raise errors.InputError(
      f'{type(data).__name__} is not training data; give a tf.data.Dataset of '
      'batches, a list of batches, or tftrain.inputs.Arrays(arrays, batch_size)'
    )
  if isinstance(data, Iterator):
    raise errors.InputError(
      f'{type(data).__name__} can be read only once, so a run could not resume;'
      ' give a function that makes it'
    )
  first = next(iter(data), None)
  if first is None:
    raise errors.InputError('the data yields 0 batches; check where it is made')
  signature = tf.nest.map_structure(_open_spec, _as_tuple(first))
  options = tf.data.Options()
  # Ending the thread that tunes has been seen to take a minute; there is
  # nothing to tune in a Python generator.
  options.autotune.enabled = False
  return lambda: tf.data.Dataset.from_generator(
    lambda: map(_as_tuple, data), output_signature=signature
  ).with_options(options)


def _as_tuple(batch: Any) -> Any:
  """tf.data takes a list for one tensor; here [x, y] is features and labels."""
  return tuple(batch) if isinstance(batch, list) else batch


def _open_spec(leaf: Any) -> tf.TensorSpec:
  """The spec of one batch's leaf, its number of rows left open."""
  array = np.asarray(leaf)
  return tf.TensorSpec((None, *array.shape[1:]), tf.as_dtype(array.dtype))

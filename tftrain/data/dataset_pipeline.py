"""DatasetPipeline: batches from a tf.data.Dataset, or any re-iterable."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import iterator_state
from tftrain.data import pipeline as pipeline_lib
from tftrain.data.sources import shuffle as shuffle_lib


class DatasetPipeline(pipeline_lib.Pipeline):
  """Pipeline of batches that the user makes.

  The data of a resumed run depends on `resume`:

  state: Checkpoints save the iterator with its shuffle buffers. This is exact,
    and is tested before step 1.
  skip: The run makes the batches again and skips those it has seen. This is
    exact if the batches are the same each time.
  restart: The data starts over.

  By default datasets, and functions that make one, are resumed by `state`; if
  the iterator cannot be saved, the run raises InputError before step 1. Lists
  and other re-iterables are resumed by `skip`.

  Args:
    data: A zero-argument function that makes a `tf.data.Dataset` of global
      batches, such a dataset, or any re-iterable of batches (a list of NumPy
      tuples). The global seed is set before the function is called.
    repeat: True starts over when the data ends.
    resume: `state`, `skip` or `restart`; None chooses as above.

  Raises:
    ConfigError: If `resume` is unknown.
    InputError: If `data` yields no batch, yields single examples, or is an
      iterator that can be read only once.
  """

  def __init__(
    self, data: Any, *, repeat: bool = True, resume: str | None = None
  ):
    if resume not in (None, 'state', 'skip', 'restart'):
      raise errors.ConfigError(
        f"DatasetPipeline.resume = {resume!r}; give 'state', 'skip' or "
        "'restart'"
      )
    self._make, python = _dataset_factory(data)
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
    self._resume = resume or ('skip' if python else 'state')
    self.keeps_iterator = self._resume == 'state'
    self.restarts = self._resume == 'restart'
    self._checked = False

  def check_resumable(self) -> None:
    if not self.keeps_iterator or self._checked:
      return
    reason = iterator_state.resume_failure(lambda: self.dataset(0))
    if reason:
      raise errors.InputError(
        f'a stopped run could not go on with this dataset: {reason}. Seed its '
        'shuffles, or give tftrain.data.DatasetPipeline(data, '
        "resume='skip') or 'restart'"
      )
    self._checked = True

  def dataset(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
    tf.random.set_seed(seed)
    dataset = self._make()
    if self._repeat and dataset.cardinality() != tf.data.INFINITE_CARDINALITY:
      dataset = dataset.repeat()
    skips = start_step and self._resume == 'skip'
    return dataset.skip(start_step) if skips else dataset

  def fingerprint(self) -> Mapping[str, Any]:
    return {'kind': 'batches', 'spec': str(self.element_spec)}


def as_pipeline(data: Any, *, training: bool) -> pipeline_lib.Pipeline:
  """Returns a Pipeline for the user's data, or for a function that makes it.

  Args:
    data: A Pipeline, a dataset, a re-iterable of batches, or a zero-argument
      function that returns one of these.
    training: True repeats data that is not a Pipeline.
  """
  made = data() if callable(data) else data
  if isinstance(made, pipeline_lib.Pipeline):
    return made
  # Keeps the factory of a dataset: called again under the same seed it shuffles
  # the same way, unlike a second iteration over the dataset.
  again = isinstance(made, tf.data.Dataset)
  return DatasetPipeline(data if again else made, repeat=training)


def _dataset_factory(data: Any) -> tuple[Callable[[], tf.data.Dataset], bool]:
  """Returns a function that makes a dataset of `data`.

  Returns:
    The function, and True if Python makes the batches.
  """
  if isinstance(data, tf.data.Dataset):
    return lambda: data, False
  if callable(data):
    made = data()
    if isinstance(made, tf.data.Dataset):
      return data, False
    return _dataset_factory(made)
  if isinstance(data, np.ndarray) or not hasattr(data, '__iter__'):
    raise errors.InputError(
      f'{type(data).__name__} is not training data; give a tf.data.Dataset of '
      'batches, a list of batches, or tftrain.data.Arrays(arrays, batch_size)'
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

  def make() -> tf.data.Dataset:
    return shuffle_lib.without_autotuning(
      tf.data.Dataset.from_generator(
        lambda: map(_as_tuple, data), output_signature=signature
      )
    )

  return make, True


def _as_tuple(batch: Any) -> Any:
  """Returns a list as a tuple.

  tf.data treats a list as one tensor; here [x, y] is features and labels.
  """
  return tuple(batch) if isinstance(batch, list) else batch


def _open_spec(leaf: Any) -> tf.TensorSpec:
  """Returns the spec of a leaf of a batch, with any number of rows."""
  array = np.asarray(leaf)
  return tf.TensorSpec((None, *array.shape[1:]), tf.as_dtype(array.dtype))

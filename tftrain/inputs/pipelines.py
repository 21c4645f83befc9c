"""What a training run asks of its data."""

import abc
from collections.abc import Mapping
from typing import Any

import tensorflow as tf


class Pipeline(abc.ABC):
  """Batches as a pure function of (seed, step): it can start at any step.

  Attributes:
    element_spec: Nest of `tf.TensorSpec` of one global batch.
    batch_size: Rows of a global batch, None where it varies.
    num_examples: Examples of one epoch, None where unknown.
    num_steps: Batches until the data ends; None where it repeats for ever or
      its end is unknown.
    repeats: Whether it is known to go on for ever.
  """

  element_spec: Any
  batch_size: int | None = None
  num_examples: int | None = None
  num_steps: int | None = None
  repeats: bool = False

  @abc.abstractmethod
  def dataset(self, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """The batches of steps `start_step`, `start_step + 1`, ..."""

  def batch(self, seed: int, step: tf.Tensor) -> Any:
    """The batch of `step` as a graph expression, or None.

    Where a batch is cheap to compute in the training graph itself, doing so
    spares the hand-over from the input threads at every step.
    """
    del seed, step
    return None

  @property
  def steps_per_epoch(self) -> float | None:
    """Batches per epoch; a fraction where batches straddle its end."""
    if self.num_examples is None or self.batch_size is None:
      return None
    return self.num_examples / self.batch_size

  def label_range(self) -> tuple[int, int] | None:
    """Smallest and largest integer label where that is known, else None."""
    return None

  @abc.abstractmethod
  def fingerprint(self) -> Mapping[str, Any]:
    """What must be equal for a resumed run to see the same batches (JSON)."""

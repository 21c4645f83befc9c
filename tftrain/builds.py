"""Building a Task: one run of its step on a real batch, without effect."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
from typing import Any

import keras
import tensorflow as tf

from tftrain import buckets
from tftrain import errors
from tftrain import losses
from tftrain import strategies
from tftrain import updates
from tftrain import variables


@contextlib.contextmanager
def explained(what: Callable[[], str]) -> Iterator[None]:
  """Turns what TensorFlow and Keras say of a batch into an InputError.

  Args:
    what: Says where and of what; asked only if there is an error.
  """
  try:
    yield
  except errors.Error:
    raise
  except (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    ValueError,
    TypeError,
  ) as error:
    raise errors.InputError(f'{what()}: {errors.one_line(error)}') from error


class Recorder:
  """Stands in for `Task.minimize` and notes what each call trains.

  Args:
    owner: What the Task is called, for errors.
    regularization: Gives the sum of the regularisers, once the loss has run.
  """

  def __init__(self, owner: str, regularization: Callable[[], Any]):
    self._owner = owner
    self._regularization = regularization
    self._calls: list[tuple[Any, list[Any], bool]] = []

  def record(
    self, loss: Any, batch: Any, trained: Sequence[Any], optimizer: Any
  ) -> updates.Step:
    """Computes everything, updates nothing."""
    if optimizer is None:
      raise errors.TaskError(
        f'{self._owner} has no optimizer; pass one, e.g. '
        'keras.optimizers.Adam(1e-3)'
      )
    if not isinstance(optimizer, keras.Optimizer):
      raise errors.TaskError(
        f'{optimizer!r} is no optimizer; give a Keras one, e.g. '
        'keras.optimizers.Adam(1e-3)'
      )
    start = [tf.identity(buckets.raw(v).read_value()) for v in trained]
    connected: list[Any] = []

    def gradients(rows: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
      with tf.GradientTape() as tape:
        sums = losses.add_up(
          loss(rows, training=True),
          strategies.batch_size(rows),
          self._regularization(),
        )
      sources = [buckets.raw(variable) for variable in trained]
      found = tape.gradient(sums.objective, sources)
      connected[:] = [
        v for v, g in zip(trained, found, strict=True) if g is not None
      ]
      return sums.weight, dict(sums.metrics)

    weight, sums = strategies.sum_over_replicas(gradients, batch)
    if not connected:
      names = ', '.join(v.name for v in list(trained)[:5])
      raise errors.TaskError(
        'no gradient reaches any variable'
        + (
          f' ({names}, ...)'
          if names
          else ': the model has no variable yet; give it a keras.Input'
        )
        + '; compute the loss from the model inside loss(), with TensorFlow ops'
      )
    assigned = any(
      bool(tf.reduce_any(was != buckets.raw(v).read_value()))
      for was, v in zip(start, trained, strict=True)
    )
    self._calls.append((optimizer, connected, assigned))
    means = {name: (value, weight) for name, value in sums.items()}
    means['gradient_norm'] = (tf.zeros([]), tf.ones([]))
    loss_value = sums['loss'] / weight
    return updates.Step(tf.constant(True), loss_value, tf.zeros([]), means)

  def make_updates(
    self, owned: variables.Owned, *, own_step: bool
  ) -> dict[int, updates.Update]:
    """Optimizer's id -> its Update, built for what a gradient reaches.

    Args:
      owned: What the Task owns.
      own_step: Whether the user wrote `train_step`.
    """
    self._check_owned(owned)
    names = {id(variable): name for name, variable in owned.variables.items()}
    made = {}
    for optimizer in {id(call[0]): call[0] for call in self._calls}.values():
      calls = [call for call in self._calls if call[0] is optimizer]
      reached = {
        names[id(v)]: v for _, connected, _ in calls for v in connected
      }
      # A flat copy of variables is right only where nobody else assigns them
      # during a step: one minimize call, none of them changed by the loss.
      apart = own_step or len(calls) > 1 or any(call[2] for call in calls)
      made[id(optimizer)] = updates.Update(
        optimizer, reached, bucketed=not apart
      )
    return made

  def _check_owned(self, owned: variables.Owned) -> None:
    """What is trained must be found again, to be saved."""
    known = {id(value) for value in owned.variables.values()}
    optimizers = {id(value) for value in owned.optimizers.values()}
    for optimizer, connected, _ in self._calls:
      lost = [v.name for v in connected if id(v) not in known]
      if id(optimizer) not in optimizers:
        lost.append(type(optimizer).__name__)
      if lost:
        raise errors.TaskError(
          f'{lost[0]} is trained but not found in {self._owner}; make what '
          'holds it an attribute whose name does not start with _'
        )

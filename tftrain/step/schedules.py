"""Learning-rate schedules that Keras lacks, composable with those of Keras.

An invalid argument raises ConfigError.
"""

from collections.abc import Callable
import math
import numbers
import reprlib
from typing import Any, NoReturn

import keras
import tensorflow as tf

from tftrain import errors

_RATE = 'a learning rate of at least 0'
_SCHEDULE = f'{_RATE}, or a schedule such as CosineDecay(0.001, 10000)'


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
  """A schedule whose attributes are its arguments; rates are float32."""

  def get_config(self) -> Any:
    return keras.saving.serialize_keras_object(vars(self))

  @classmethod
  def from_config(cls, config: Any) -> Any:
    return cls(**keras.saving.deserialize_keras_object(config))


@keras.saving.register_keras_serializable('tftrain')
class LinearWarmup(_Schedule):
  """Linear warm-up, followed by another schedule.

  Update number `step`, counted from 0, has the learning rate
  `start + (after(0) - start) * step / steps` before `steps`, and
  `after(step - steps)` from there on. The first update has the rate `start`: at
  0, the default, it changes no weight.

  Linear warm-up for large batches is from Goyal et al. 2017, "Accurate, Large
  Minibatch SGD", https://arxiv.org/abs/1706.02677.

  Args:
    after: A learning rate or a schedule. The schedule is at its step 0 when the
      warm-up ends.
    steps: Length of the warm-up, in updates.
    start: Learning rate of the first update.

  Raises:
    ConfigError: If an argument is out of range or of another type.
  """

  def __init__(self, after: Any, steps: int, start: float = 0.0):
    self.after = _check_schedule('LinearWarmup(after', after)
    self.steps = _check_count('LinearWarmup(steps', steps)
    self.start = _check_rate('LinearWarmup(start', start)

  def __call__(self, step: Any) -> tf.Tensor:
    step = tf.cast(step, tf.int64)
    after = _rate(self.after, tf.maximum(step - self.steps, 0))
    # Integer countdown: a falling warm-up loses no digits at its end.
    left = tf.cast(self.steps - step, tf.float32) / self.steps
    done = tf.cast(step, tf.float32) / self.steps
    return tf.where(step < self.steps, self.start * left + after * done, after)


@keras.saving.register_keras_serializable('tftrain')
class InverseSqrtDecay(_Schedule):
  """Linear rise to a peak, then inverse square root decay.

  Update number `step`, counted from 0, has the learning rate
  `peak * min(step / warm_up, sqrt(warm_up / step))`.

  From Vaswani et al. 2017, "Attention Is All You Need", section 5.3,
  https://arxiv.org/abs/1706.03762. In the paper, updates count from 1 and
  `peak` is `(model_size * warm_up) ** -0.5`.

  Args:
    peak: The highest learning rate, reached at update number `warm_up`.
    warm_up: Length of the rise, in updates.

  Raises:
    ConfigError: If an argument is out of range or of another type.
  """

  def __init__(self, peak: float, warm_up: int):
    self.peak = _check_rate('InverseSqrtDecay(peak', peak)
    self.warm_up = _check_count('InverseSqrtDecay(warm_up', warm_up)

  def __call__(self, step: Any) -> tf.Tensor:
    ratio = tf.cast(step, tf.float32) / self.warm_up
    # The root is 1 during the rise, which avoids a division by 0 at step 0.
    return self.peak * tf.minimum(ratio, 1.0 / tf.sqrt(tf.maximum(ratio, 1.0)))


@keras.saving.register_keras_serializable('tftrain')
class JoinedSchedules(_Schedule):
  """A sequence of schedules, one after another.

  Update number `step`, counted from 0, has the learning rate
  `schedules[i](step - boundaries[i - 1])` from `boundaries[i - 1]` on and
  before `boundaries[i]`. The first schedule starts at 0, the last has no end.

  Args:
    schedules: Learning rates and schedules, at least one. Each schedule starts
      at its step 0.
    boundaries: First update of each schedule except the first, increasing.

  Raises:
    ConfigError: If the boundaries do not increase, their number is not that of
      the schedules minus 1, or a value is out of range or of another type.
  """

  def __init__(self, schedules: Any, boundaries: Any):
    self.schedules = _check_all(
      'JoinedSchedules(schedules', schedules, _check_schedule
    )
    self.boundaries = _check_all(
      'JoinedSchedules(boundaries', boundaries, _check_count
    )
    count = len(boundaries) + 1
    if len(schedules) != count:
      wanted = f'one schedule more than boundaries, here {count}'
      _refuse('JoinedSchedules(schedules', schedules, wanted)
    if self.boundaries != sorted(set(self.boundaries)):
      _refuse('JoinedSchedules(boundaries', boundaries, 'updates that increase')

  def __call__(self, step: Any) -> tf.Tensor:
    step = tf.cast(step, tf.int64)
    rate = _rate(self.schedules[0], step)
    for i, boundary in enumerate(self.boundaries):
      own = _rate(self.schedules[i + 1], tf.maximum(step - boundary, 0))
      rate = tf.where(step < boundary, rate, own)
    return rate


def _rate(schedule: Any, step: tf.Tensor) -> tf.Tensor:
  if isinstance(schedule, float):
    return tf.fill(tf.shape(step), schedule)
  return tf.cast(schedule(step), tf.float32)


def _check_schedule(argument: str, value: Any) -> Any:
  if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
    return value
  return _check_rate(argument, value, _SCHEDULE)


def _check_rate(argument: str, value: Any, wanted: str = _RATE) -> float:
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not number or not 0.0 <= value < math.inf:
    _refuse(argument, value, wanted)
  return float(value)


def _check_count(argument: str, value: Any) -> int:
  if not errors.is_count(value):
    _refuse(argument, value, 'a whole number of updates, at least 1')
  return int(value)


def _check_all(argument: str, values: Any, check: Callable[..., Any]) -> Any:
  if not isinstance(values, list | tuple):
    _refuse(argument, values, 'a list')
  return [check(f'{argument}[{i}]', value) for i, value in enumerate(values)]


def _refuse(argument: str, value: Any, wanted: str) -> NoReturn:
  shown = ' '.join(reprlib.repr(value).split())
  raise errors.ConfigError(f'{argument}={shown}): give {wanted}')

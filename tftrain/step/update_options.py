"""Update: the options of a training step. Step: the result of one update."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any, NamedTuple

import tensorflow as tf

from tftrain import errors

_JIT = ('auto', 'off', 'block', 'step')
_PATTERN = "give a pattern such as 'dense/kernel', or None"
_RATES = "give {pattern: factor}, such as {'head': 10.0}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
  """The options of a training step; the defaults are plain gradient descent.

  >>> Trainer(task, data, update=Update(clip_norm=1.0, ema=0.999))

  Patterns are regular expressions that are searched for in the names of
  variables, such as `model/sequential/dense/kernel`.

  Attributes:
    accumulate: Micro-batches per global batch. Their gradients are added up and
      divided once, so the update equals that of the whole batch, in less
      memory.
    clip_norm: Largest global norm of the mean gradient; None does not clip.
    clip_value: Largest absolute value of an entry of the mean gradient; None
      does not clip.
    clip_adaptive: Largest ratio of gradient norm to weight norm, per unit
      (adaptive gradient clipping, Brock et al. 2021, "High-performance
      large-scale image recognition without normalization"); 0.01 is usual, None
      does not clip.
    freeze: Pattern of variables that are not trained. A layer whose variables
      all match also stops updating its batch statistics.
    rates: Pattern -> factor of the learning rate; the first match counts. The
      factor also scales weight decay.
    no_decay: Pattern of variables exempt from the optimizer's `weight_decay`.
    ema: Decay of the exponential moving average of the trained weights,
      `ema = decay * ema + (1 - decay) * weight`. Evaluation and export use the
      EMA. None keeps no average.
    loss_scale: `dynamic`, a number, or None. `dynamic` halves the scale and
      skips the step if a gradient overflows, and doubles the scale after 2,000
      good steps. `auto` is `dynamic` if a layer computes in float16.
    max_skips: Most steps in a row that are skipped because their loss or
      gradient is not finite. A skipped step changes only `step` and
      `skipped_steps`. One more such step ends the run; at 0, the first does.
    sync_batch_norm: Whether batch normalization uses the statistics of the
      global batch instead of the per-replica batch.
    remat: Pattern of layers, named like `model/sequential/dense`, to
      rematerialize: the backward pass computes their activations again.
    jit: What XLA compiles. `off`: nothing. `block`: whole blocks of steps as
      one program, several times faster for small models; for one replica and
      batches of static shapes. `step`: each step on one replica, its forward
      and backward pass on several. `auto`: `block` where it can be and is
      faster, else `off`, by the rule in `train/jit.py`.

  Raises:
    ConfigError: If a value is out of range or of another type.
  """

  accumulate: int = 1
  clip_norm: float | None = None
  clip_value: float | None = None
  clip_adaptive: float | None = None
  freeze: str | None = None
  rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  no_decay: str | None = None
  ema: float | None = None
  loss_scale: str | float | None = 'auto'
  max_skips: int = 0
  sync_batch_norm: bool = True
  remat: str | None = None
  jit: str = 'auto'

  def __post_init__(self) -> None:
    self._check_numbers()
    if not isinstance(self.sync_batch_norm, bool):
      self._refuse('sync_batch_norm', 'give True or False')
    if self.jit not in _JIT:
      self._refuse('jit', "give 'auto', 'off', 'block' or 'step'")
    if not isinstance(self.rates, Mapping):
      self._refuse('rates', _RATES)
    for name, pattern in self.patterns():
      self._check_pattern(name, pattern)
    for pattern, factor in self.rates.items():
      if not _is_number(factor, above=0):
        self._refuse(
          'rates', f'the factor of {pattern!r} must be above 0; see also freeze'
        )

  def patterns(self) -> list[tuple[str, str]]:
    """Returns (argument, pattern) for each pattern that is set."""
    single = ('freeze', 'no_decay', 'remat')
    given = [(name, getattr(self, name)) for name in single]
    given = [(name, pattern) for name, pattern in given if pattern is not None]
    return given + [('rates', pattern) for pattern in self.rates]

  def _check_numbers(self) -> None:
    if not errors.is_count(self.accumulate):
      self._refuse('accumulate', 'give a whole number of at least 1')
    if not errors.is_count(self.max_skips, 0):
      self._refuse('max_skips', 'give a whole number of at least 0')
    for name in ('clip_norm', 'clip_value', 'clip_adaptive'):
      value = getattr(self, name)
      if value is not None and not _is_number(value, above=0):
        self._refuse(name, 'give a number above 0, or None')
    if self.ema is not None and not (_is_number(self.ema, 0) and self.ema < 1):
      self._refuse('ema', 'give a decay between 0 and 1, such as 0.999')
    named = self.loss_scale in ('auto', 'dynamic', None)
    if not named and not _is_number(self.loss_scale, above=0):
      self._refuse('loss_scale', "give 'auto', 'dynamic', a number or None")

  def _check_pattern(self, name: str, pattern: Any) -> None:
    if not isinstance(pattern, str):
      self._refuse(name, _RATES if name == 'rates' else _PATTERN)
    if not pattern:
      self._refuse(
        name,
        "an empty pattern matches everything; leave it out, or give '.' if "
        'that is meant',
      )
    check_pattern(f'Update.{name}', pattern)

  def _refuse(self, name: str, advice: str) -> None:
    raise errors.ConfigError(
      f'Update.{name} = {getattr(self, name)!r}; {advice}'
    )


def check_pattern(what: str, pattern: str) -> None:
  """Raises ConfigError if `pattern` is not a valid regular expression."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise errors.ConfigError(
      f'{what}: {pattern!r} is no regular expression ({error})'
    ) from error


def _is_number(value: Any, above: float) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and above < value < float('inf')


class Measure(NamedTuple):
  """The measurements to take of a step's updates; bool scalars.

  Attributes:
    look: Whether to record zero gradients and the size of the update.
    report: Whether the size also goes into the metrics; implies `look`.
  """

  look: Any = False
  report: Any = False

  def only_if(self, condition: tf.Tensor) -> 'Measure':
    """Returns the measurements to take if `condition` holds, else none."""
    return Measure(self.look & condition, self.report & condition)


class Step(NamedTuple):
  """The result of one update; scalars, the same on every replica.

  Attributes:
    finite: Whether loss and gradients were finite; if not, nothing changed.
    skipped: Whether the step was not finite, but the loss scale could be
      lowered, so that the run goes on.
    loss: The mean loss of the global batch.
    gradient_norm: Global norm of the mean gradient, before clipping.
    sums: Metric name -> (weighted sum, sum of weights) over the global batch.
  """

  finite: tf.Tensor
  skipped: tf.Tensor
  loss: tf.Tensor
  gradient_norm: tf.Tensor
  sums: Mapping[str, tuple[tf.Tensor, tf.Tensor]]


def counted_if(
  keep: tf.Tensor, sums: Mapping[str, tuple[tf.Tensor, tf.Tensor]]
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
  """Returns sums as in `Step.sums`, all zero if `keep` is false."""
  return {
    name: (tf.where(keep, value, 0.0), tf.where(keep, weight, 0.0))
    for name, (value, weight) in sums.items()
  }

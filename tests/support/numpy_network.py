"""Runs of one network by tftrain and by NumPy."""

import dataclasses
import functools

import keras
import pytest

from tests.support import numpy_trainer
from tests.support import small_tasks
import tftrain
from tftrain import errors

on_one_and_two = pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
# Name -> (what Keras calls it, what NumPy calls it).
OPTIMIZERS = {
  'sgd': (
    functools.partial(keras.optimizers.SGD, 0.2),
    numpy_trainer.SGD(0.2),
  ),
  'momentum': (
    functools.partial(keras.optimizers.SGD, 0.05, momentum=0.9),
    numpy_trainer.SGD(0.05, momentum=0.9),
  ),
  'nesterov': (
    functools.partial(keras.optimizers.SGD, 0.05, momentum=0.9, nesterov=True),
    numpy_trainer.SGD(0.05, momentum=0.9, nesterov=True),
  ),
  # With beta_2 = 0.999, float32 itself is 1e-6 away after twenty steps.
  'adamw': (
    functools.partial(
      keras.optimizers.AdamW, 0.01, weight_decay=0.5, beta_2=0.95
    ),
    numpy_trainer.AdamW(0.01, weight_decay=0.5, beta_2=0.95),
  ),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One way to train: options of Update, and what is none of them."""

  update: dict = dataclasses.field(default_factory=dict)
  even: bool = False  # no weights and no ragged end
  squared: bool = False
  l2: float = 0.0
  rows: float = 8.0  # that one call of the loss sees, times the replicas

  def oracle_options(self):
    names = {field.name for field in dataclasses.fields(numpy_trainer.Options)}
    known = {k: v for k, v in self.update.items() if k in names}
    return numpy_trainer.Options(**known)


CASES = {
  'plain': Case(even=True),
  'weights': Case(),
  'accumulate': Case({'accumulate': 4}, l2=0.1, rows=2),
  'accumulate even': Case({'accumulate': 4}, even=True, rows=2),
  'clip_norm': Case({'clip_norm': 0.4}),
  'clip_value': Case({'clip_value': 0.1}, squared=True),
  'clip_adaptive': Case({'clip_adaptive': 0.1}),
  'rates': Case(
    {'rates': {'dense_1/': 0.25, 'kernel': 3.0}, 'no_decay': 'bias|_1/'}
  ),
  'freeze': Case({'freeze': 'dense/bias|_1/kernel', 'ema': 0.8}),
  'everything': Case(
    {
      'accumulate': 2,
      'clip_value': 0.2,
      'clip_norm': 0.4,
      'freeze': 'dense_1/bias',
      'rates': {'dense_1/': 0.25, 'kernel': 3.0},
      'no_decay': 'dense/bias',
      'ema': 0.9,
      'loss_scale': 'dynamic',
    },
    l2=0.01,
    rows=4,
  ),
}


def trainer(make, data, strategy='one_device', update=None, **options):
  keras.utils.set_random_seed(3)
  if isinstance(strategy, str):
    strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make()
  update = update or tftrain.Update()
  return tftrain.Trainer(
    task, data, strategy=strategy, update=update, **options
  )


def numpy_run(optimizer, case, weights, options=None):
  case = CASES[case]
  return numpy_trainer.Oracle(
    weights,
    OPTIMIZERS[optimizer][1],
    case.oracle_options() if options is None else options,
    squared=case.squared,
    l2=case.l2,
  )


def refuses(
  fragments, update, make=small_tasks.supervised, data=None, **options
):
  """Expects one line with these fragments, before the first step."""
  data = data or tftrain.Arrays(small_tasks.arrays(), 8)
  with pytest.raises(errors.Error) as info:
    trainer(make, data, update=tftrain.Update(**update), **options)
  text = str(info.value)
  assert '\n' not in text
  for fragment in fragments:
    assert fragment in text

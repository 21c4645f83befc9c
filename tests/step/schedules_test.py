"""Schedules: against closed forms in NumPy, at steps of any kind."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tftrain import errors
from tftrain.step import schedules

keras_schedules = keras.optimizers.schedules

_LATE = 2**31 + 5


# The closed forms, in float64, of steps in int64.


def _constant(rate):
  return lambda step: np.full(step.shape, rate)


def _cosine(peak, steps, alpha):
  def rate(step):
    falling = 0.5 * (1 + np.cos(np.pi * np.minimum(step, steps) / steps))
    return peak * ((1 - alpha) * falling + alpha)

  return rate


def _line(first, steps, last):
  return lambda step: first + (last - first) * np.minimum(step, steps) / steps


def _warm_up(after, steps, start=0.0):
  def rate(step):
    rising = start + (after(np.int64(0)) - start) * step / steps
    return np.where(step < steps, rising, after(np.maximum(step - steps, 0)))

  return rate


def _inverse_sqrt(peak, warm_up):
  def rate(step):
    falling = np.sqrt(warm_up / np.maximum(step, 1))
    return peak * np.minimum(step / warm_up, falling)

  return rate


def _joined(rates, boundaries):
  def rate(step):
    ends = [*boundaries, np.inf]
    starts = [0, *boundaries]
    value = np.zeros(step.shape)
    for one, start, end in zip(rates, starts, ends, strict=True):
      inside = (start <= step) & (step < end)
      value = np.where(inside, one(np.maximum(step - start, 0)), value)
    return value

  return rate


# Name -> schedule, closed form, steps besides 0, 1 and 2**31 + 5.
_CASES = {
  'warm-up to a constant': (
    schedules.LinearWarmup(0.3, 8),
    _warm_up(_constant(0.3), 8),
    [4, 7, 8, 9, 1000],
  ),
  'warm-up of one update': (
    schedules.LinearWarmup(1, 1, 0.25),
    _warm_up(_constant(1.0), 1, 0.25),
    [2],
  ),
  'warm-up to a cosine': (
    schedules.LinearWarmup(
      keras_schedules.CosineDecay(1e-3, 1000, 0.1), 500, 1e-5
    ),
    _warm_up(_cosine(1e-3, 1000, 0.1), 500, 1e-5),
    [250, 499, 500, 501, 1000, 1499, 1500, 1501],
  ),
  'warm-up that falls': (
    schedules.LinearWarmup(1e-3, 100, 1.0),
    _warm_up(_constant(1e-3), 100, 1.0),
    [50, 99, 100, 101],
  ),
  'inverse square root': (
    schedules.InverseSqrtDecay(0.7, 4000),
    _inverse_sqrt(0.7, 4000),
    [2000, 3999, 4000, 4001, 16000],
  ),
  'joined': (
    schedules.JoinedSchedules(
      [
        0.5,
        keras_schedules.PolynomialDecay(0.4, 10, 0.1),
        schedules.InverseSqrtDecay(0.2, 5),
        0,
      ],
      [3, 20, 2**31],
    ),
    _joined(
      [
        _constant(0.5),
        _line(0.4, 10, 0.1),
        _inverse_sqrt(0.2, 5),
        _constant(0.0),
      ],
      [3, 20, 2**31],
    ),
    [2, 3, 4, 8, 13, 19, 20, 21, 25, 26, 2**31 - 1, 2**31],
  ),
  'joined to one': (
    schedules.JoinedSchedules([0.5], []),
    _constant(0.5),
    [7],
  ),
  'one within another': (
    schedules.LinearWarmup(
      schedules.JoinedSchedules([1.0, schedules.LinearWarmup(0.5, 4)], [10]),
      6,
      2.0,
    ),
    _warm_up(
      _joined([_constant(1.0), _warm_up(_constant(0.5), 4)], [10]), 6, 2.0
    ),
    [3, 5, 6, 15, 16, 17, 18, 20, 21],
  ),
}
_each_case = pytest.mark.parametrize(
  ('schedule', 'closed_form', 'steps'), _CASES.values(), ids=list(_CASES)
)


def _near(rate, expected):
  assert rate.dtype == tf.float32
  assert rate.shape == expected.shape
  np.testing.assert_allclose(rate, expected, rtol=5e-7, atol=0)


@_each_case
def test_rates_are_those_of_the_closed_form(schedule, closed_form, steps):
  steps = np.array([0, 1, *steps, _LATE])
  expected = closed_form(steps)
  for step, rate in zip(steps, expected, strict=True):
    _near(schedule(int(step)), rate)
  _near(schedule(tf.constant(steps)), expected)


@pytest.mark.parametrize('jit', [False, True], ids=['graph', 'XLA'])
@_each_case
def test_rates_of_compiled_steps(schedule, closed_form, steps, jit):
  steps = np.array([0, 1, *steps, _LATE])
  function = tf.function(schedule, jit_compile=jit)
  _near(function(tf.constant(steps)), closed_form(steps))
  _near(function(tf.constant(_LATE)), closed_form(np.array(_LATE)))


@pytest.mark.parametrize(
  'make',
  [
    lambda: 6,
    lambda: np.int64(6),
    lambda: tf.constant(6),
    lambda: tf.constant(6, tf.int64),
    lambda: tf.Variable(6, dtype=tf.int64),
    lambda: keras.Variable(6, dtype='int64', trainable=False),
  ],
  ids='int numpy int32 int64 Variable keras'.split(),
)
def test_a_step_may_be_of_any_kind(make):
  for one in (
    schedules.LinearWarmup(0.4, 8),
    schedules.InverseSqrtDecay(0.4, 8),
    schedules.JoinedSchedules([1.0, schedules.LinearWarmup(0.4, 4)], [3]),
  ):
    step = make()
    assert one(step) == tf.constant(0.3)
    assert tf.function(lambda one=one, step=step: one(step))() == one(step)


def test_late_steps_lose_no_digits():
  late = 2**31
  line = keras_schedules.PolynomialDecay(1.0, 8, 0.0)
  assert schedules.LinearWarmup(line, late)(late + 5) == 0.375
  assert schedules.JoinedSchedules([1.0, line], [late])(late + 5) == 0.375
  assert schedules.LinearWarmup(0.0, late, 1.0)(late - 1) == 2.0**-31


def test_no_step_divides_by_zero():
  tf.debugging.enable_check_numerics()
  try:
    with pytest.raises(tf.errors.InvalidArgumentError):
      1.0 / tf.sqrt(tf.zeros([]))
    for schedule, _, _ in _CASES.values():
      schedule(0)
  finally:
    tf.debugging.disable_check_numerics()


def test_a_later_schedule_sees_no_step_before_its_first():
  seen = []

  class Watch(keras_schedules.LearningRateSchedule):
    def __call__(self, step):
      seen.append((step.dtype, int(step)))
      return tf.constant(1, tf.int64)

  assert schedules.JoinedSchedules([0.5, Watch()], [10])(3) == 0.5
  assert schedules.LinearWarmup(Watch(), 10)(3) == tf.constant(0.3)
  assert schedules.LinearWarmup(Watch(), 10)(13) == 1.0
  assert seen == [(tf.int64, 0), (tf.int64, 0), (tf.int64, 3)]


@pytest.mark.parametrize('jit', [False, True], ids=['graph', 'XLA'])
@pytest.mark.parametrize(
  ('schedule', 'closed_form'),
  [
    (
      schedules.LinearWarmup(keras_schedules.CosineDecay(0.5, 6, 0.1), 4),
      _warm_up(_cosine(0.5, 6, 0.1), 4),
    ),
    (
      schedules.JoinedSchedules([0.5, schedules.InverseSqrtDecay(0.2, 3)], [2]),
      _joined([_constant(0.5), _inverse_sqrt(0.2, 3)], [2]),
    ),
  ],
  ids=['cosine', 'joined'],
)
def test_an_optimizer_follows_it(schedule, closed_form, jit):
  optimizer = keras.optimizers.SGD(schedule)
  weight = keras.Variable([1.0, -2.0])
  optimizer.build([weight])
  gradient = np.float32([0.5, -1.0])

  @tf.function(jit_compile=jit)
  def update():
    optimizer.apply([tf.constant(gradient)])

  expected = np.array([1.0, -2.0])
  for step in range(12):
    rate = closed_form(np.array(step))
    _near(optimizer.learning_rate, rate)
    update()
    expected -= rate * gradient
    np.testing.assert_allclose(weight.numpy(), expected, rtol=0, atol=2e-6)


@_each_case
def test_it_comes_back_from_its_configuration(schedule, closed_form, steps):
  text = json.dumps(keras_schedules.serialize(schedule))
  again = keras_schedules.deserialize(json.loads(text))
  assert type(again) is type(schedule)
  assert json.dumps(keras_schedules.serialize(again)) == text
  steps = np.array([0, 1, *steps, _LATE])
  np.testing.assert_array_equal(again(steps), schedule(steps))
  optimizer = keras.optimizers.get(
    json.loads(
      json.dumps(keras.optimizers.serialize(keras.optimizers.SGD(schedule)))
    )
  )
  assert optimizer.learning_rate == schedule(0)


class _Own(keras_schedules.LearningRateSchedule):
  def __init__(self, rate):
    self.rate = rate

  def __call__(self, step):
    return self.rate * tf.cast(step + 1, tf.float32)

  def get_config(self):
    return {'rate': self.rate}


def test_a_schedule_of_the_users_comes_back_too():
  config = keras_schedules.serialize(schedules.LinearWarmup(_Own(0.5), 3))
  again = keras_schedules.deserialize(config, {'_Own': _Own})
  assert again(5) == 1.5

  class Mute(keras_schedules.LearningRateSchedule):
    pass

  with pytest.raises(NotImplementedError, match='get_config'):
    schedules.JoinedSchedules([Mute(), 0.1], [5]).get_config()


_RATE = 'a learning rate of at least 0'
_SCHEDULE = f'{_RATE}, or a schedule such as CosineDecay(0.001, 10000)'
_COUNT = 'a whole number of updates, at least 1'
_INCREASE = 'updates that increase'
_MORE = 'one schedule more than boundaries, here'
_REFUSED = [
  ('LinearWarmup', (0.1, 0), 'steps=0', _COUNT),
  ('LinearWarmup', (0.1, -5), 'steps=-5', _COUNT),
  ('LinearWarmup', (0.1, 10.0), 'steps=10.0', _COUNT),
  ('LinearWarmup', (0.1, True), 'steps=True', _COUNT),
  ('LinearWarmup', (0.1, '9'), "steps='9'", _COUNT),
  ('LinearWarmup', (-0.1, 9), 'after=-0.1', _SCHEDULE),
  ('LinearWarmup', ('0.1', 9), "after='0.1'", _SCHEDULE),
  ('LinearWarmup', (None, 9), 'after=None', _SCHEDULE),
  ('LinearWarmup', (False, 9), 'after=False', _SCHEDULE),
  ('LinearWarmup', (float, 9), "after=<class 'float'>", _SCHEDULE),
  (
    'LinearWarmup',
    (np.zeros((2, 1)), 9),
    'after=array([[0.], [0.]])',
    _SCHEDULE,
  ),
  ('LinearWarmup', (1.0, 9, -1), 'start=-1', _RATE),
  ('LinearWarmup', (1.0, 9, np.nan), 'start=nan', _RATE),
  ('LinearWarmup', (1.0, 9, '0'), "start='0'", _RATE),
  ('InverseSqrtDecay', (-1.0, 9), 'peak=-1.0', _RATE),
  ('InverseSqrtDecay', (np.inf, 9), 'peak=inf', _RATE),
  ('InverseSqrtDecay', (None, 9), 'peak=None', _RATE),
  ('InverseSqrtDecay', (1.0, 0), 'warm_up=0', _COUNT),
  ('JoinedSchedules', (0.1, [5]), 'schedules=0.1', 'a list'),
  ('JoinedSchedules', ([0.1, 0.2], 5), 'boundaries=5', 'a list'),
  ('JoinedSchedules', ([], []), 'schedules=[]', f'{_MORE} 1'),
  ('JoinedSchedules', ([0.1], [5, 6]), 'schedules=[0.1]', f'{_MORE} 3'),
  ('JoinedSchedules', ([0.1, 1.0], []), 'schedules=[0.1, 1.0]', f'{_MORE} 1'),
  ('JoinedSchedules', ([0.1, -0.2], [5]), 'schedules[1]=-0.2', _SCHEDULE),
  ('JoinedSchedules', (['x', 0.2], [5]), "schedules[0]='x'", _SCHEDULE),
  ('JoinedSchedules', ([0.1, 0.2], [0]), 'boundaries[0]=0', _COUNT),
  ('JoinedSchedules', ([0.1, 0.2, 0.3], [5, 6.5]), 'boundaries[1]=6.5', _COUNT),
  (
    'JoinedSchedules',
    ([0.1, 0.2, 0.3], [6, 5]),
    'boundaries=[6, 5]',
    _INCREASE,
  ),
  (
    'JoinedSchedules',
    ((0.1, 0.2, 0.3), (5, 5)),
    'boundaries=(5, 5)',
    _INCREASE,
  ),
]


@pytest.mark.parametrize(
  ('name', 'arguments', 'value', 'wanted'),
  _REFUSED,
  ids=[f'{name}({value})' for name, _, value, _ in _REFUSED],
)
def test_what_makes_no_sense_is_refused(name, arguments, value, wanted):
  with pytest.raises(errors.ConfigError) as raised:
    getattr(schedules, name)(*arguments)
  assert str(raised.value) == f'{name}({value}): give {wanted}'

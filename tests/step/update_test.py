"""Update: from a batch to new weights, against NumPy in float64."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import numpy_network
from tests.support import numpy_trainer
from tests.support import small_tasks
import tftrain


class _Network(tftrain.Task):
  """What the oracle trains."""

  def __init__(self, optimizer, squared=False, l2=0.0):
    regularizer = keras.regularizers.L2(l2) if l2 else None
    super().__init__(small_tasks.model(regularizer=regularizer), optimizer)
    self._squared = squared

  def loss(self, batch, training):
    x, y, weights = batch if len(batch) == 3 else (*batch, None)
    outputs = self.model(x, training=training)
    if self._squared:
      values = (outputs[:, 0] - tf.cast(y, tf.float32)) ** 2
    else:
      values = keras.losses.sparse_categorical_crossentropy(
        y, outputs, from_logits=True
      )
    return tftrain.Loss(values, weights, rows=tf.shape(x)[0])


def _data(even=False):
  """Ten steps; uneven: of weights, some of them 0, and a last one of 2 rows."""
  x, y = small_tasks.arrays(40 if even else 37)
  random = np.random.RandomState(4)
  weights = random.uniform(0.1, 3.0, 37) * (random.uniform(size=37) > 0.3)
  arrays = (x, y) if even else (x, y, weights.astype('float32'))
  return tftrain.Arrays(arrays, 8, epochs=2)


@functools.cache
def _batches(even=False):
  batches = list(_data(even).dataset(0))
  return [tuple(leaf.numpy() for leaf in batch) for batch in batches]


@dataclasses.dataclass
class _Run:
  before: dict
  after: dict
  reports: list


@functools.cache
def _run(optimizer, case, strategy, steps=10, **changes):
  """Trains the network; several tests share these runs."""
  options = numpy_network.CASES[case]
  trainer = numpy_network.trainer(
    lambda: _Network(
      numpy_network.OPTIMIZERS[optimizer][0](), options.squared, options.l2
    ),
    _data(options.even),
    strategy,
    tftrain.Update(**{**options.update, **changes}),
    log_every=4,
  )
  before = small_tasks.state_of(trainer)
  reports = list(trainer.steps(steps))
  return _Run(before, small_tasks.state_of(trainer), reports)


# (optimizer, case, strategy). A mirrored run does all that one device does.
_RUNS = (
  ('sgd', 'plain', 'one_device'),
  ('adamw', 'weights', 'mirrored'),
  ('momentum', 'accumulate', 'one_device'),
  ('momentum', 'accumulate', 'mirrored'),
  ('sgd', 'accumulate even', 'one_device'),
  ('adamw', 'clip_norm', 'one_device'),
  ('adamw', 'clip_norm', 'mirrored'),
  ('momentum', 'clip_value', 'mirrored'),
  ('sgd', 'clip_adaptive', 'one_device'),
  ('nesterov', 'clip_adaptive', 'mirrored'),
  ('adamw', 'rates', 'one_device'),
  ('adamw', 'rates', 'mirrored'),
  ('nesterov', 'freeze', 'one_device'),
  ('nesterov', 'freeze', 'mirrored'),
  ('adamw', 'everything', 'one_device'),
  ('adamw', 'everything', 'mirrored'),
)


@pytest.mark.parametrize('optimizer, case, strategy', _RUNS)
def test_training_equals_numpy_in_float64(optimizer, case, strategy):
  run = _run(optimizer, case, strategy)
  expected = numpy_network.numpy_run(optimizer, case, run.before)
  _check_reports(run, expected, _batches(numpy_network.CASES[case].even))
  _check_state(run, expected, 1e-6)


def _check_reports(run, expected, batches):
  """Trains the oracle as far as the run went, and compares what was said."""
  interval = []
  waiting = list(run.reports)
  while waiting:
    expected.step(batches[expected.count])
    interval.append((expected.loss, expected.weight, expected.gradient_norm))
    if expected.count == waiting[0].step:
      scalars = waiting.pop(0).scalars
      loss, weight, norm = np.array(interval).T
      loss = (loss * weight).sum() / weight.sum()
      assert scalars['loss'] == pytest.approx(loss, rel=1e-5)
      assert scalars['gradient_norm'] == pytest.approx(norm.mean(), rel=1e-5)
      interval = []


def _check_state(run, expected, tolerance):
  ours = {name: run.after[name] for name in numpy_trainer.NAMES}
  theirs = dict(expected.weights)
  for slot, values in expected.slots.items():
    named = {f'optimizer/{slot}/{k}': value for k, value in values.items()}
    ours.update({name: run.after[name] for name in named})
    theirs.update(named)
  if expected.options.ema is not None:
    named = {
      f'optimizer/ema/{k}': expected.averages[k] for k in expected.trained
    }
    ours.update({name: run.after[name] for name in named})
    theirs.update(named)
  small_tasks.assert_close(ours, theirs, tolerance)


@pytest.mark.parametrize(
  'optimizer, case, strategy',
  [
    ('sgd', 'plain', 'one_device'),
    ('nesterov', 'freeze', 'mirrored'),
    ('adamw', 'everything', 'one_device'),
    ('adamw', 'everything', 'mirrored'),
  ],
)
def test_the_update_ratio_is_that_of_the_log_step(optimizer, case, strategy):
  run = _run(optimizer, case, strategy)
  expected = numpy_network.numpy_run(optimizer, case, run.before)
  batches = _batches(numpy_network.CASES[case].even)
  for report in run.reports[:2]:  # steps 4 and 8
    while expected.count < report.step:
      expected.step(batches[expected.count])
    assert report.scalars['update_ratio'] == pytest.approx(
      expected.update_ratio, rel=1e-4
    )


def _close(value, expected, what):
  np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=what)


@pytest.mark.parametrize(
  'optimizer, case', dict.fromkeys(run[:2] for run in _RUNS)
)
def test_each_option_makes_a_difference(optimizer, case):
  # Else the test above could not fail where the library forgot an option.
  keras.utils.set_random_seed(3)
  start = small_tasks.model().get_weights()
  before = dict(zip(numpy_trainer.NAMES, start, strict=True))
  options = numpy_network.CASES[case].oracle_options()
  changes = {f.name: f.default for f in dataclasses.fields(options)}
  changes['rates'] = {}
  for name, default in changes.items():
    if getattr(options, name) == default:
      continue
    one, other = (
      numpy_network.numpy_run(optimizer, case, before, chosen)
      for chosen in (options, dataclasses.replace(options, **{name: default}))
    )
    for batch in _batches(numpy_network.CASES[case].even):
      one.step(batch)
      other.step(batch)
    if name.startswith('clip_'):
      sizes = sum(one.weights[n].size for n in one.trained)
      assert 10 < one.clipped < 10 * sizes  # sometimes and not always
    difference = max(
      np.abs(values[n] - others[n]).max()
      for values, others in (
        (one.weights, other.weights),
        (one.averages, other.averages),
      )
      for n in numpy_trainer.NAMES
    )
    assert difference > 1e-3, name


# What of the oracle plain Keras can do too: (optimizer, case, its options).
_IN_KERAS = (
  ('sgd', 'plain', {}),
  ('momentum', 'accumulate', {}),
  ('nesterov', 'weights', {}),
  ('adamw', 'clip_norm', {'global_clipnorm': 0.4}),
  ('momentum', 'clip_value', {'clipvalue': 0.1}),
)


@pytest.mark.parametrize('optimizer, case, in_keras', _IN_KERAS)
def test_numpy_in_float64_equals_keras(optimizer, case, in_keras):
  keras.utils.set_random_seed(3)
  options = numpy_network.CASES[case]
  task = _Network(None, options.squared, options.l2)
  optimizer_in_keras = numpy_network.OPTIMIZERS[optimizer][0](**in_keras)
  variables = task.model.trainable_weights
  weights = dict(
    zip(numpy_trainer.NAMES, task.model.get_weights(), strict=True)
  )
  expected = numpy_network.numpy_run(optimizer, case, weights)
  for batch in _batches(options.even):
    expected.step(batch)
    with tf.GradientTape() as tape:
      loss = task.loss(batch, training=True)
      scale = (
        1.0 if loss.weights is None else loss.weights / loss.weights.mean()
      )
      mean = tf.reduce_mean(loss.values * scale) + sum(task.model.losses)
    assert float(mean) == pytest.approx(expected.loss, rel=1e-5)
    gradients = tape.gradient(mean, variables)
    optimizer_in_keras.apply(gradients, variables)
  for name, variable in zip(numpy_trainer.NAMES, variables, strict=True):
    _close(variable.numpy(), expected.weights[name], name)


@pytest.mark.slow
@pytest.mark.parametrize(
  'optimizer, case, strategy',
  [('adamw', 'everything', 'one_device'), ('nesterov', 'freeze', 'mirrored')],
)
def test_xla_changes_no_result(optimizer, case, strategy):
  # Without the ragged end, for which all would be compiled once more.
  run = _run(optimizer, case, strategy, steps=8, jit='step')
  expected = numpy_network.numpy_run(optimizer, case, run.before)
  _check_reports(run, expected, _batches(numpy_network.CASES[case].even))
  _check_state(run, expected, 1e-5)
  without = _run(optimizer, case, strategy)
  assert run.after.keys() == without.after.keys()
  for one, other in zip(run.reports, without.reports[:2], strict=True):
    assert one.scalars == pytest.approx(other.scalars, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('optimizer, case, strategy', _RUNS)
def test_a_step_sees_micro_batches(optimizer, case, strategy):
  replicas = 2 if strategy == 'mirrored' else 1
  scalars = _run(optimizer, case, strategy).reports[0].scalars
  assert scalars['rows'] == pytest.approx(
    numpy_network.CASES[case].rows / replicas
  )


@numpy_network.on_one_and_two
def test_frozen_variables_keep_their_bits_and_have_no_slots(strategy):
  run = _run('nesterov', 'freeze', strategy)
  kernel, bias, kernel_1, bias_1 = numpy_trainer.NAMES
  for name in (bias, kernel_1):
    np.testing.assert_array_equal(run.after[name], run.before[name])
    assert [key for key in run.after if key.endswith(name)] == [name]
  for name in (kernel, bias_1):
    assert np.abs(run.after[name] - run.before[name]).max() > 0.01
    assert f'optimizer/momentum/{name}' in run.after
    assert f'optimizer/ema/{name}' in run.after


def test_reported_rates_are_those_that_were_applied():
  scalars = _run('adamw', 'rates', 'mirrored').reports[0].scalars
  assert scalars['learning_rate'] == pytest.approx(0.01)
  assert scalars['learning_rate/dense_1/'] == pytest.approx(0.0025)
  assert scalars['learning_rate/kernel'] == pytest.approx(0.03)


def test_the_norm_is_reported_before_clipping():
  run = _run('adamw', 'clip_norm', 'one_device')
  assert run.reports[0].scalars['gradient_norm'] > 0.5  # clipped to 0.4

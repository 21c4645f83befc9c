"""Everything between a batch and new weights, against NumPy in float64."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
from tests import oracle
import tftrain
from tftrain import errors
from tftrain.step import _loss_scale

_on_one_and_two = pytest.mark.parametrize(
  'strategy', ['one_device', 'mirrored']
)

# Name -> (what Keras calls it, what NumPy calls it).
_OPTIMIZERS = {
  'sgd': (
    functools.partial(keras.optimizers.SGD, 0.2),
    oracle.SGD(0.2),
  ),
  'momentum': (
    functools.partial(keras.optimizers.SGD, 0.05, momentum=0.9),
    oracle.SGD(0.05, momentum=0.9),
  ),
  'nesterov': (
    functools.partial(keras.optimizers.SGD, 0.05, momentum=0.9, nesterov=True),
    oracle.SGD(0.05, momentum=0.9, nesterov=True),
  ),
  # With beta_2 = 0.999, float32 itself is 1e-6 away after twenty steps.
  'adamw': (
    functools.partial(
      keras.optimizers.AdamW, 0.01, weight_decay=0.5, beta_2=0.95
    ),
    oracle.AdamW(0.01, weight_decay=0.5, beta_2=0.95),
  ),
}


@dataclasses.dataclass(frozen=True)
class _Case:
  """One way to train: options of Update, and what is none of them."""

  update: dict = dataclasses.field(default_factory=dict)
  even: bool = False  # no weights and no ragged end
  squared: bool = False
  l2: float = 0.0
  rows: float = 8.0  # that one call of the loss sees, times the replicas

  def oracle_options(self):
    names = {field.name for field in dataclasses.fields(oracle.Options)}
    known = {k: v for k, v in self.update.items() if k in names}
    return oracle.Options(**known)


_CASES = {
  'plain': _Case(even=True),
  'weights': _Case(),
  'accumulate': _Case({'accumulate': 4}, l2=0.1, rows=2),
  'accumulate even': _Case({'accumulate': 4}, even=True, rows=2),
  'clip_norm': _Case({'clip_norm': 0.4}),
  'clip_value': _Case({'clip_value': 0.1}, squared=True),
  'clip_adaptive': _Case({'clip_adaptive': 0.1}),
  'rates': _Case(
    {'rates': {'dense_1/': 0.25, 'kernel': 3.0}, 'no_decay': 'bias|_1/'}
  ),
  'freeze': _Case({'freeze': 'dense/bias|_1/kernel', 'ema': 0.8}),
  'everything': _Case(
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


class _Network(tftrain.Task):
  """What the oracle trains."""

  def __init__(self, optimizer, squared=False, l2=0.0):
    regularizer = keras.regularizers.L2(l2) if l2 else None
    super().__init__(cases.model(regularizer=regularizer), optimizer)
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
  x, y = cases.arrays(40 if even else 37)
  random = np.random.RandomState(4)
  weights = random.uniform(0.1, 3.0, 37) * (random.uniform(size=37) > 0.3)
  arrays = (x, y) if even else (x, y, weights.astype('float32'))
  return tftrain.Arrays(arrays, 8, epochs=2)


@functools.cache
def _batches(even=False):
  batches = list(_data(even).dataset(0))
  return [tuple(leaf.numpy() for leaf in batch) for batch in batches]


def _trainer(make, data, strategy='one_device', update=None, **options):
  keras.utils.set_random_seed(3)
  if isinstance(strategy, str):
    strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make()
  update = update or tftrain.Update()
  return tftrain.Trainer(
    task, data, strategy=strategy, update=update, **options
  )


@dataclasses.dataclass
class _Run:
  before: dict
  after: dict
  reports: list


@functools.cache
def _run(optimizer, case, strategy, steps=10, **changes):
  """Trains the network; several tests share these runs."""
  options = _CASES[case]
  trainer = _trainer(
    lambda: _Network(_OPTIMIZERS[optimizer][0](), options.squared, options.l2),
    _data(options.even),
    strategy,
    tftrain.Update(**{**options.update, **changes}),
    log_every=4,
  )
  before = cases.state_of(trainer)
  reports = list(trainer.steps(steps))
  return _Run(before, cases.state_of(trainer), reports)


def _oracle(optimizer, case, weights, options=None):
  case = _CASES[case]
  return oracle.Oracle(
    weights,
    _OPTIMIZERS[optimizer][1],
    case.oracle_options() if options is None else options,
    squared=case.squared,
    l2=case.l2,
  )


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
  expected = _oracle(optimizer, case, run.before)
  _check_reports(run, expected, _batches(_CASES[case].even))
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
  ours = {name: run.after[name] for name in oracle.NAMES}
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
  cases.assert_close(ours, theirs, tolerance)


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
  expected = _oracle(optimizer, case, run.before)
  batches = _batches(_CASES[case].even)
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
  start = cases.model().get_weights()
  before = dict(zip(oracle.NAMES, start, strict=True))
  options = _CASES[case].oracle_options()
  changes = {f.name: f.default for f in dataclasses.fields(options)}
  changes['rates'] = {}
  for name, default in changes.items():
    if getattr(options, name) == default:
      continue
    one, other = (
      _oracle(optimizer, case, before, chosen)
      for chosen in (options, dataclasses.replace(options, **{name: default}))
    )
    for batch in _batches(_CASES[case].even):
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
      for n in oracle.NAMES
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
  options = _CASES[case]
  task = _Network(None, options.squared, options.l2)
  optimizer_in_keras = _OPTIMIZERS[optimizer][0](**in_keras)
  variables = task.model.trainable_weights
  weights = dict(zip(oracle.NAMES, task.model.get_weights(), strict=True))
  expected = _oracle(optimizer, case, weights)
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
  for name, variable in zip(oracle.NAMES, variables, strict=True):
    _close(variable.numpy(), expected.weights[name], name)


@pytest.mark.slow
@pytest.mark.parametrize(
  'optimizer, case, strategy',
  [('adamw', 'everything', 'one_device'), ('nesterov', 'freeze', 'mirrored')],
)
def test_xla_changes_no_result(optimizer, case, strategy):
  # Without the ragged end, for which all would be compiled once more.
  run = _run(optimizer, case, strategy, steps=8, jit=True)
  expected = _oracle(optimizer, case, run.before)
  _check_reports(run, expected, _batches(_CASES[case].even))
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
  assert scalars['rows'] == pytest.approx(_CASES[case].rows / replicas)


@_on_one_and_two
def test_frozen_variables_keep_their_bits_and_have_no_slots(strategy):
  run = _run('nesterov', 'freeze', strategy)
  kernel, bias, kernel_1, bias_1 = oracle.NAMES
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


@_on_one_and_two
def test_the_average_is_its_closed_form_and_what_is_evaluated(strategy):
  strategy = tftrain.make_strategy(strategy)
  held_out = cases.arrays(21, seed=5)
  update = tftrain.Update(ema=0.9, loss_scale='dynamic')
  make = lambda: cases.supervised(keras.optimizers.SGD(0.3), dropout=0.3)
  data = tftrain.Arrays(cases.arrays(), 8)

  def build():
    return _trainer(make, data, strategy, update, log_every=1)

  def average(history):
    last = len(history) - 1
    total = 0.9**last * history[0]
    for step in range(1, last + 1):
      total += 0.1 * 0.9 ** (last - step) * history[step]
    return total

  trainer = build()
  evaluator = tftrain.Evaluator(
    trainer.task,
    tftrain.Arrays(held_out, 8, training=False),
    strategy=strategy,
  )
  weights = lambda: [
    w.astype('float64') for w in trainer.task.model.get_weights()
  ]

  def check(history, state):
    """Returns the loss at the averages."""
    averages = dict(
      zip(oracle.NAMES, map(average, zip(*history, strict=True)), strict=True)
    )
    if len(history) > 1:
      for name, value in averages.items():
        np.testing.assert_allclose(
          state[f'optimizer/ema/{name}'], value, rtol=0, atol=1e-6
        )
    loss = _oracle('sgd', 'plain', averages).mean_loss(held_out, averages)
    assert evaluator.evaluate()['loss'] == pytest.approx(loss, abs=1e-6)
    cases.assert_same_bits(state, cases.state_of(trainer))
    return loss

  history = [weights()]
  check(history, cases.state_of(trainer))
  states = {}
  for report in trainer.steps(30):
    history.append(weights())
    if report.step in (1, 12, 30):
      states[report.step] = state = cases.state_of(trainer)
      loss = check(history, state)
  raw = dict(zip(oracle.NAMES, history[-1], strict=True))
  loss_of_raw = _oracle('sgd', 'plain', raw).mean_loss(held_out, raw)
  assert abs(loss - loss_of_raw) > 1e-3
  with pytest.raises(KeyError), trainer.task.averaged():
    for value, name in zip(weights(), oracle.NAMES, strict=True):
      np.testing.assert_array_equal(value, state[f'optimizer/ema/{name}'])
    raise KeyError
  cases.assert_same_bits(state, cases.state_of(trainer))
  # From a saved state, and without an evaluation in between.
  never_evaluated = build()
  never_evaluated.write_state(states[1])
  never_evaluated.train(30)
  cases.assert_same_bits(state, cases.state_of(never_evaluated))


def _overflowing(steps, bad):
  """Batches of 8; those of the steps in `bad` overflow in their last rows.

  The loss is finite: the feature that is so large has weight 0, and stays
  there, for elsewhere it is 0.
  """
  x, y = cases.arrays(8)
  x[:, 0] = 0.0
  too_large = x.copy()
  too_large[4:, 0] = 1e38
  return [(too_large if i in bad else x, y) for i in range(1, steps + 1)]


def _overflowing_task():
  task = cases.supervised(keras.optimizers.SGD(0.05, momentum=0.9))
  kernel = task.model.layers[0].kernel
  kernel.assign(kernel.numpy() * (np.arange(6) > 0)[:, None])
  return task


@_on_one_and_two
def test_a_step_that_overflows_changes_only_the_scale(strategy, monkeypatch):
  monkeypatch.setattr(_loss_scale, 'GROWTH_STEPS', 4)
  update = tftrain.Update(loss_scale='dynamic', ema=0.9)
  data = _overflowing(12, bad=[2, 8])
  trainer = _trainer(_overflowing_task, data, strategy, update, log_every=1)
  states, scalars = [], []
  for report in trainer.steps(12):
    states.append(cases.state_of(trainer))
    scalars.append(report.scalars)

  def seen(name):
    return [int(state[name]) for state in states]

  skipped = [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
  taken = [1, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10]
  # Half after a step that overflows, twice after four good ones in a row.
  scale = [1, 0.5, 0.5, 0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 1]
  assert seen('trainer/step') == list(range(1, 13))
  assert seen('trainer/updates') == seen('optimizer/iterations') == taken
  assert seen('trainer/skipped_steps') == skipped
  assert [s['skipped_steps'] for s in scalars] == skipped
  scale = [_loss_scale.INITIAL * factor for factor in scale]
  assert seen('optimizer/loss_scale/scale') == scale
  assert [s['loss_scale'] for s in scalars] == scale
  kept = [
    name
    for name in states[0]
    if name.startswith(('model/', 'optimizer/')) and 'loss_scale' not in name
  ]
  assert len(kept) >= 4 * 3  # weights, momentum, EMA
  for before, after, next_one in (states[0:3], states[6:9]):
    for name in kept:
      np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    for name in oracle.NAMES:
      assert np.abs(after[name] - next_one[name]).max() > 0
      assert np.isfinite(next_one[name]).all()


# Bad input.


def _refuses(fragments, update, make=cases.supervised, data=None, **options):
  """Expects one line with these fragments, before the first step."""
  data = data or tftrain.Arrays(cases.arrays(), 8)
  with pytest.raises(errors.Error) as info:
    _trainer(make, data, update=tftrain.Update(**update), **options)
  text = str(info.value)
  assert '\n' not in text
  for fragment in fragments:
    assert fragment in text


@pytest.mark.parametrize(
  'update, given',
  [
    ({'freeze': 'embeding'}, "'embeding'"),
    ({'rates': {'kernel': 0.5, 'embeding': 2.0}}, "'embeding'"),
    ({'no_decay': 'embeding'}, "'embeding'"),
    ({'remat': 'embeding'}, "'embeding'"),
    ({'freeze': 'dense('}, "'dense('"),
    ({'rates': {'dense(': 1.0}}, "'dense('"),
    ({'rates': {'kernel': -0.5}}, '-0.5'),
    ({'accumulate': 0}, '0'),
    ({'accumulate': 1.5}, '1.5'),
    ({'clip_norm': 0.0}, '0.0'),
    ({'clip_norm': -1.0}, '-1.0'),
    ({'clip_value': 0.0}, '0.0'),
    ({'clip_adaptive': -0.1}, '-0.1'),
    ({'ema': 0.0}, '0.0'),
    ({'ema': 1.0}, '1.0'),
    ({'ema': -0.1}, '-0.1'),
    ({'loss_scale': 'dynamc'}, "'dynamc'"),
    ({'loss_scale': 0.0}, '0.0'),
    ({'freeze': 'model/'}, 'model/'),
  ],
)
def test_options_that_make_no_sense(update, given):
  make = lambda: cases.supervised(keras.optimizers.AdamW(0.01))
  _refuses((*update, given), update, make)


@pytest.mark.parametrize(
  'in_keras, ours',
  [
    ({'clipnorm': 1.0}, 'clip_norm'),
    ({'global_clipnorm': 1.0}, 'clip_norm'),
    ({'clipvalue': 1.0}, 'clip_value'),
    ({'gradient_accumulation_steps': 2}, 'accumulate'),
    ({'use_ema': True}, 'ema'),
  ],
)
def test_what_keras_would_do_on_its_own_side(in_keras, ours):
  make = lambda: cases.supervised(keras.optimizers.SGD(0.1, **in_keras))
  _refuses((*in_keras, f'Update({ours}='), {}, make, strategy='mirrored')


@_on_one_and_two
def test_weights_that_sum_to_zero_end_the_run_at_their_step(strategy):
  x, y, weights = cases.regression(24)
  weights[:4] = 0.0  # one micro-batch, or one replica: nothing is wrong
  weights[16:] = 0.0
  batches = [
    (x[i : i + 8], y[i : i + 8], weights[i : i + 8]) for i in (0, 8, 16)
  ]
  # A scale that does not adapt skips nothing.
  update = tftrain.Update(accumulate=2, ema=0.9, loss_scale=8.0)
  make = lambda: cases.weighted(keras.optimizers.Adam(0.01))
  trainer = _trainer(make, batches, strategy, update)
  trainer.train(2)
  before = trainer.task.model.get_weights()
  with pytest.raises(errors.NonFiniteError, match='step 3.*weights') as info:
    trainer.train(10)
  assert '\n' not in str(info.value)
  assert (trainer.step, trainer.updates) == (3, 2)
  for one, other in zip(before, trainer.task.model.get_weights(), strict=True):
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


@_on_one_and_two
def test_losses_that_cannot_be_trained(strategy):
  def with_loss(loss):
    task = type('Mine', (tftrain.Task,), {'loss': loss})
    return lambda: task(cases.model(), keras.optimizers.SGD())

  for fragments, values in (
    (('one number per example', '3)'), lambda task, x: task.model(x)),
    (('no gradient reaches', 'kernel'), lambda task, x: x[:, 0]),
  ):
    loss = lambda self, batch, training, values=values: tftrain.Loss(
      values(self, batch[0])
    )
    _refuses(fragments, {'accumulate': 2}, with_loss(loss), strategy=strategy)


def test_a_model_from_outside_the_scope():
  model = cases.model()
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  make = lambda: tftrain.SupervisedTask(model, loss, keras.optimizers.SGD())
  _refuses(
    ('model/sequential/dense/kernel', 'scope'),
    {'ema': 0.9, 'accumulate': 2},
    make,
    strategy='mirrored',
  )

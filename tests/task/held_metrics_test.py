"""Keras metrics that a model or a layer holds and updates itself."""

import keras
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors

strategies = pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
mirrored_slow = pytest.mark.parametrize(
  'strategy', ['one_device', pytest.param('mirrored', marks=pytest.mark.slow)]
)


class Watched(keras.layers.Layer):
  """Passes its input on; keeps the mean of it, or of a function of it."""

  def __init__(self, metric='act', of=tf.identity, **options):
    super().__init__(**options)
    self.of = of
    self.mean = keras.metrics.Mean(name=metric)

  def call(self, x):
    self.mean.update_state(self.of(x))
    return x


class Block(keras.layers.Layer):
  """Holds a layer that holds a metric."""

  def __init__(self, inner, **options):
    super().__init__(**options)
    self.inner = inner

  def call(self, x):
    return self.inner(x)


class Whole(keras.Model):
  """A subclassed model with a metric of its own, and with one in a list."""

  def __init__(self):
    super().__init__()
    self.head = keras.layers.Dense(3)
    self.act = keras.metrics.Mean(name='act')
    self.more = [keras.metrics.Sum(name='rows')]

  def call(self, x):
    self.act.update_state(x)
    self.more[0].update_state(tf.ones(tf.shape(x)[0]))
    return self.head(x)


def layered(*layers):
  return keras.Sequential(
    [keras.Input((6,)), *layers, keras.layers.Dense(3, name='head')]
  )


def supervised(model, loss=step_runs.cross_entropy):
  return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD(0.1))


def trainer(
  make, strategy='one_device', log_every=2, build=supervised, **options
):
  """A Trainer of 8 rows a step, in order; the last step has 3."""
  data = tftrain.Arrays(small_tasks.arrays(), 8, training=False)
  return small_tasks.trainer(
    data, lambda: build(make()), strategy, log_every=log_every, **options
  )


def x(first, last):
  """The rows of these steps."""
  return small_tasks.arrays()[0][8 * first - 8 : 8 * last]


def nested():
  return layered(Block(Block(Watched())))


def functional():
  inputs = keras.Input((6,))
  inner = keras.Sequential([keras.Input((6,)), Watched()])
  return keras.Model(inputs, keras.layers.Dense(3)(inner(inputs)))


@pytest.mark.parametrize(
  ('make', 'strategy'),
  [
    pytest.param(nested, 'one_device', marks=pytest.mark.slow),
    (nested, 'mirrored'),
    pytest.param(functional, 'one_device', marks=pytest.mark.slow),
    pytest.param(functional, 'mirrored', marks=pytest.mark.slow),
    pytest.param(Whole, 'one_device', marks=pytest.mark.slow),
    pytest.param(Whole, 'mirrored', marks=pytest.mark.slow),
  ],
)
def test_each_report_has_the_metric_of_its_own_steps(make, strategy):
  run = trainer(make, strategy, log_every=3)
  assert 'act' in run.tags
  first, second, third = (r.scalars for r in run.steps(9))
  assert first['act'] == pytest.approx(x(1, 3).mean(), rel=1e-5)
  assert second['act'] == pytest.approx(x(4, 6).mean(), rel=1e-5)
  # Replicas of 1 and 2 rows: a mean of their means would be another number.
  assert third['act'] == pytest.approx(x(7, 9).mean(), rel=1e-5)
  if make is Whole:
    assert [r['rows'] for r in (first, second, third)] == [24, 24, 19]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('strategy', 'options'),
  [
    ('one_device', {'accumulate': 2}),
    ('mirrored', {'accumulate': 2}),
    ('one_device', {'jit': 'step'}),
    ('one_device', {'jit': 'block'}),
    ('mirrored', {'jit': 'step'}),
  ],
)
def test_micro_batches_and_xla_count_each_row_once(strategy, options):
  run = trainer(nested, strategy, update=tftrain.Update(**options))
  first, second = (r.scalars for r in run.steps(4))
  assert first['act'] == pytest.approx(x(1, 2).mean(), rel=1e-5)
  assert second['act'] == pytest.approx(x(3, 4).mean(), rel=1e-5)


@mirrored_slow
def test_an_evaluation_leaves_the_metric_of_training_alone(strategy):
  run = trainer(nested, strategy, log_every=4)
  held_out, labels = small_tasks.arrays(13, seed=1)
  evaluator = tftrain.Evaluator(
    run.task, [(held_out[:8], labels[:8]), (held_out[8:], labels[8:])],
    strategy=run.strategy,
  )  # fmt: skip
  assert 'act' in evaluator.tags

  def evaluate(report):
    if report.step != 2:
      return
    before = small_tasks.state_of(run)
    [count] = [v for name, v in before.items() if name.endswith('act/1_count')]
    assert count == 16
    for _ in range(2):
      found = evaluator.evaluate()['act']
      assert found == pytest.approx(held_out.mean(), rel=1e-5)
    small_tasks.assert_same_bits(before, small_tasks.state_of(run))

  scalars = run.train(3, [tftrain.Every(2, evaluate)]).scalars
  assert scalars['act'] == pytest.approx(x(1, 3).mean(), rel=1e-5)


@pytest.mark.slow
@strategies
def test_an_evaluator_alone_reports_it(strategy):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    model = nested()
    model.compile(loss='sparse_categorical_crossentropy')
    task = tftrain.SupervisedTask.from_compiled(model, optimizer=None)
  data = [small_tasks.arrays(13, seed=1)]
  evaluator = tftrain.Evaluator(task, data, strategy=strategy)
  assert set(evaluator.tags) == {'loss', 'act'}
  found = evaluator.evaluate()['act']
  assert found == pytest.approx(data[0][0].mean(), rel=1e-5)


def compiled():
  model = nested()
  model.compile(
    'sgd',
    step_runs.cross_entropy,
    metrics=['accuracy', keras.metrics.SparseCategoricalCrossentropy(
      name='entropy', from_logits=True)],
    weighted_metrics=['accuracy'],
  )  # fmt: skip
  return model


def fitted():
  """Also after Keras has made the variables of what it compiled."""
  model = compiled()
  model.fit(*small_tasks.arrays(8), verbose=0)
  return model


def inside():
  return layered(compiled())


@pytest.mark.parametrize(
  'make', [compiled, inside, pytest.param(fitted, marks=pytest.mark.slow)]
)
def test_the_trackers_of_a_compiled_model_do_not_appear(make):
  run = trainer(make)
  assert set(run.task.metrics) == {'act'}
  assert set(run.tags) == {'loss', 'gradient_norm', 'update_ratio', 'act'}
  assert not [n for n in small_tasks.state_of(run) if 'entropy' in n]


@pytest.mark.slow
@mirrored_slow
def test_from_compiled_reports_what_was_compiled_and_what_is_held(strategy):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = tftrain.SupervisedTask.from_compiled(compiled())
  data = tftrain.Arrays(small_tasks.arrays(), 8, training=False)
  run = tftrain.Trainer(task, data, strategy=strategy, log_every=3)
  scalars = run.train(3).scalars
  metrics = {'act', 'accuracy', 'weighted_accuracy', 'entropy'}
  rest = {'loss', 'gradient_norm', 'update_ratio', 'learning_rate'}
  assert scalars.keys() == metrics | rest
  assert scalars['act'] == pytest.approx(x(1, 3).mean(), rel=1e-5)


def sparse(model):
  return supervised(
    model, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  )


@mirrored_slow
def test_the_check_of_labels_before_step_1_counts_nowhere(strategy):
  run = trainer(nested, strategy, build=sparse)
  state = small_tasks.state_of(run)
  assert [v for name, v in state.items() if '/act/' in name] == [0.0, 0.0]


def largest(x):
  return tf.reduce_max(x, -1)


def test_metrics_of_one_name_are_reported_by_path():
  run = trainer(
    lambda: layered(
      Watched(name='one'),
      Block(Watched(of=largest, name='two'), name='block'),
      Watched('rare', name='three'),
    )
  )
  rows = x(1, 2)
  expected = {
    'model/sequential/one/act': rows.mean(),
    'model/sequential/block/two/act': rows.max(-1).mean(),
    'rare': rows.mean(),
  }
  assert set(run.task.metrics) == set(expected)
  scalars = run.train(2).scalars
  found = {name: scalars[name] for name in expected}
  assert found == pytest.approx(expected, rel=1e-5)


class Two(keras.layers.Layer):
  """Holds two metrics that nobody named."""

  def __init__(self):
    super().__init__()
    self.all = keras.metrics.Mean()
    self.most = keras.metrics.Mean()

  def call(self, x):
    self.all.update_state(x)
    self.most.update_state(largest(x))
    return x


@pytest.mark.parametrize(
  'make',
  [
    lambda: layered(Two()),
    lambda: layered(Watched(name='one'), Block(Watched(name='one'))),
    lambda: layered(Watched(), Watched(of=largest)),
    lambda: layered(Block(Watched()), Block(Watched(of=largest))),
  ],
  ids=['one layer', 'one name', 'no names', 'nested'],
)
def test_no_metric_is_lost_to_another_of_its_name(make):
  run = trainer(make)
  assert len(run.task.metrics) == 2
  saved = [name for name in small_tasks.state_of(run) if '_total' in name]
  assert len(saved) == 2


@pytest.mark.slow
@strategies
def test_a_restored_run_goes_on_with_the_state_of_the_metric(
  strategy, tmp_path
):
  first = trainer(nested, strategy, log_every=4)
  save = tftrain.Checkpointer(tmp_path, first)
  at_3 = lambda report: save(report) if report.step == 3 else None
  first.train(4, [tftrain.Every(3, at_3)])
  run = trainer(nested, strategy, log_every=4)
  assert tftrain.Checkpointer(tmp_path, run).restore() == 3
  scalars = run.train(4).scalars
  assert scalars['act'] == pytest.approx(x(1, 4).mean(), rel=1e-5)


@pytest.mark.slow
@strategies
def test_a_skipped_step_counts_nowhere(strategy):
  features, labels = small_tasks.arrays(24)
  rows = features.copy()
  rows[9] = float('nan')
  run = small_tasks.trainer(
    tftrain.Arrays((rows, labels), 8, training=False),
    lambda: supervised(nested()),
    strategy,
    log_every=3,
    update=tftrain.Update(max_skips=1),
  )
  scalars = run.train(3).scalars
  assert scalars['skipped_steps'] == 1
  counted = (features[:8].mean() + features[16:].mean()) / 2
  assert scalars['act'] == pytest.approx(counted, rel=1e-5)


def test_a_name_of_the_library_is_refused():
  make = lambda: layered(Watched('loss'))
  with error_lines.refused(errors.TaskError, "'loss'", 'rename'):
    trainer(make)

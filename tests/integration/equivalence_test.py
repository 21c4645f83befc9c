"""Equivalence: replicas, blocks, buckets and restarts change no result."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.step import fused_variables


def train(task_factory, data, steps, strategy='one_device', **options):
  keras.utils.set_random_seed(3)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = task_factory()
  trainer = tftrain.Trainer(task, data, strategy=strategy, **options)
  report = trainer.train(steps)
  return trainer, report


@pytest.mark.parametrize(
  'optimizer', [keras.optimizers.SGD, keras.optimizers.AdamW]
)
def test_two_replicas_equal_one_with_uneven_weights_and_a_ragged_end(optimizer):
  # 37 examples, two epochs, batch 6: the last batch holds 2 rows.
  data = tftrain.Arrays(small_tasks.regression(), 6, epochs=2)
  runs = [
    train(
      lambda: small_tasks.weighted(optimizer(0.05)), data, 100, strategy=name
    )
    for name in ('one_device', 'mirrored')
  ]
  (one, report_one), (two, report_two) = runs
  assert one.step == two.step == 13
  small_tasks.assert_close(
    small_tasks.state_of(one), small_tasks.state_of(two), 1e-6
  )
  small_tasks.assert_close(report_one.scalars, report_two.scalars, 1e-6)


def test_regularization_counts_once_whatever_the_replicas():
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  make = lambda: small_tasks.supervised(regularizer=keras.regularizers.L2(0.1))
  one, report_one = train(make, data, 20)
  two, report_two = train(make, data, 20, strategy='mirrored')
  small_tasks.assert_close(
    small_tasks.state_of(one), small_tasks.state_of(two), 2e-6
  )
  assert report_one.scalars['loss'] == pytest.approx(
    report_two.scalars['loss'], abs=1e-6
  )
  without, _ = train(small_tasks.supervised, data, 20)
  name = 'model/sequential/dense/kernel'
  assert (
    np.abs(small_tasks.state_of(one)[name]).sum()
    < np.abs(small_tasks.state_of(without)[name]).sum()
  )


@pytest.mark.parametrize('examples', [1, 2, 17, 40])
def test_evaluation_is_exact_whatever_the_remainder(examples):
  x, y = small_tasks.arrays(examples)
  results = []
  for name in ('one_device', 'mirrored'):
    keras.utils.set_random_seed(1)
    strategy = tftrain.make_strategy(name)
    with strategy.scope():
      task = small_tasks.supervised(
        metrics={'keras': keras.metrics.SparseCategoricalAccuracy()}
      )
    data = tftrain.Arrays((x, y), 8, training=False)
    results.append(tftrain.Evaluator(task, data, strategy=strategy).evaluate())
  logits = task.model(x).numpy().astype('float64')
  losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(examples), y]
  for result in results:
    assert result['loss'] == pytest.approx(losses.mean(), abs=1e-6)
    assert result['accuracy'] == (logits.argmax(-1) == y).mean()
    assert result['keras'] == pytest.approx(result['accuracy'], abs=1e-7)


def test_weighted_sgd_equals_numpy_in_float64():
  x, y, weights = small_tasks.regression(examples=12)
  trainer, report = train(
    lambda: small_tasks.weighted(keras.optimizers.SGD(0.1, momentum=0.9)),
    [(x[i : i + 5], y[i : i + 5], weights[i : i + 5]) for i in (0, 5, 10)],
    7,
    log_every=7,
  )
  keras.utils.set_random_seed(3)
  kernel, bias = small_tasks.weighted(None).model.get_weights()
  w = np.concatenate([kernel[:, 0], bias]).astype('float64')
  velocity, loss, absolute, total = np.zeros_like(w), 0.0, 0.0, 0.0
  for step in range(7):
    rows = slice(5 * (step % 3), min(5 * (step % 3) + 5, 12))
    inputs = np.c_[x[rows], np.ones(len(x[rows]))].astype('float64')
    error, weight = inputs @ w - y[rows], weights[rows].astype('float64')
    loss += (weight * error**2).sum()
    absolute += (weight * abs(error)).sum()
    total += weight.sum()
    gradient = inputs.T @ (2 * weight * error) / weight.sum()
    velocity = 0.9 * velocity - 0.1 * gradient
    w = w + velocity
  state = small_tasks.state_of(trainer)
  np.testing.assert_allclose(
    state['model/sequential/dense/kernel'][:, 0], w[:3], atol=1e-6
  )
  np.testing.assert_allclose(
    state['model/sequential/dense/bias'], w[3:], atol=1e-6
  )
  assert report.scalars['loss'] == pytest.approx(loss / total, abs=1e-6)
  assert report.scalars['absolute'] == pytest.approx(absolute / total, abs=1e-6)


def test_blocks_of_any_length_give_the_same_bits(tmp_path):
  lines, states, traces = [], [], []
  for steps_per_loop in (1, 7, 100):
    model_dir = tmp_path / str(steps_per_loop)
    run = tftrain.Experiment(
      lambda: small_tasks.supervised(
        dropout=0.3, metrics={'auc': keras.metrics.SparseCategoricalAccuracy()}
      ),
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
      lambda: tftrain.Arrays(small_tasks.arrays(seed=5), 16, training=False),
      steps=200,
      steps_per_loop=steps_per_loop,
      log_every=50,
      eval_every=70,
      checkpoint_every=45,
      export=False,
    ).prepare(model_dir)
    run.train()
    lines.append((model_dir / 'metrics.jsonl').read_bytes())
    states.append(small_tasks.state_of(run.trainer))
    traces.append(run.trainer.traces)
    assert run.checkpointer.steps() == [135, 180, 200]
  assert lines[0] == lines[1] == lines[2]
  small_tasks.assert_same_bits(states[0], states[1])
  small_tasks.assert_same_bits(states[0], states[2])
  assert traces == [1, 1, 1]
  steps = [json.loads(line)['step'] for line in lines[0].splitlines()]
  assert steps == [50, 70, 100, 140, 150, 200, 200]


@pytest.mark.parametrize(
  'optimizer',
  [
    lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    *(
      pytest.param(make, marks=pytest.mark.slow)
      for make in (
        lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.RMSprop(0.01, centered=True),
        lambda: keras.optimizers.Lion(0.001),
      )
    ),
  ],
)
def test_a_bucket_gives_the_same_bits_as_variables_apart(
  optimizer, monkeypatch
):
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  make = lambda: small_tasks.supervised(optimizer())
  together, report = train(make, data, 60)
  monkeypatch.setattr(fused_variables, 'is_small', lambda *_: False)
  apart, _ = train(make, data, 60)
  one, other = small_tasks.state_of(together), small_tasks.state_of(apart)
  # Only the reported norm of the gradient sums in another order.
  assert report.scalars['gradient_norm'] > 0
  one.pop('trainer/means'), other.pop('trainer/means')
  small_tasks.assert_same_bits(one, other)


def test_weights_assigned_between_blocks_are_what_is_trained():
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  trainer, _ = train(small_tasks.supervised, data, 5)
  zeros = [np.zeros_like(w) for w in trainer.task.model.get_weights()]
  trainer.task.model.set_weights(zeros)
  trainer.task.optimizer.learning_rate = 0.0
  trainer.train(6)
  for weight in trainer.task.model.get_weights():
    assert not weight.any()


class Clipped(tftrain.Task):
  """Assigns a trainable variable inside its loss."""

  def loss(self, batch, training):
    x, y = batch
    kernel = self.model.layers[0].kernel
    if training:
      kernel.assign(tf.clip_by_value(kernel, -0.01, 0.01))
    return tftrain.Loss(
      keras.losses.sparse_categorical_crossentropy(
        y, self.model(x, training=training), from_logits=True
      )
    )


def test_a_weight_assigned_inside_a_step_is_kept():
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  make = lambda: Clipped(small_tasks.model(), keras.optimizers.SGD(0.001))
  trainer, _ = train(make, data, 5)
  kernel = trainer.task.model.layers[0].kernel.numpy()
  assert np.abs(kernel).max() < 0.02


def test_checkpoints_move_between_one_replica_and_two(tmp_path):
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  saved, _ = train(small_tasks.supervised, data, 30, strategy='mirrored')
  checkpointer = tftrain.Checkpointer(tmp_path, saved)
  checkpointer.save()
  checkpointer.wait()
  resumed, _ = train(small_tasks.supervised, data, 0)
  assert tftrain.Checkpointer(tmp_path, resumed).restore() == 30
  small_tasks.assert_same_bits(
    small_tasks.state_of(saved), small_tasks.state_of(resumed)
  )
  saved.train(60)
  resumed.train(60)
  small_tasks.assert_close(
    small_tasks.state_of(saved), small_tasks.state_of(resumed), 1e-5
  )


@pytest.mark.slow
def test_a_plain_module_trains_like_the_keras_model_it_copies():
  class Linear(tf.Module):
    def __init__(self):
      super().__init__()
      kernel, bias = small_tasks.weighted(None).model.get_weights()
      self.w, self.b = tf.Variable(kernel), tf.Variable(bias)

    def __call__(self, x, training=False):
      return x @ self.w + self.b

  data = tftrain.Arrays(small_tasks.regression(), 6)
  for name in ('one_device', 'mirrored'):
    keras_run, _ = train(
      lambda: small_tasks.weighted(keras.optimizers.Adam(0.01)), data, 20, name
    )
    module_run, _ = train(
      lambda: small_tasks.Weighted(Linear(), keras.optimizers.Adam(0.01)),
      data,
      20,
      name,
    )
    ours = small_tasks.state_of(module_run)
    theirs = small_tasks.state_of(keras_run)
    np.testing.assert_allclose(
      ours['model/w'], theirs['model/sequential/dense/kernel'], atol=1e-6
    )
    assert ours['optimizer/momentum/model/w'].any()


def test_eager_and_compiled_runs_agree():
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  compiled, _ = train(small_tasks.supervised, data, 6)
  tf.config.run_functions_eagerly(True)
  try:
    eager, _ = train(small_tasks.supervised, data, 6)
  finally:
    tf.config.run_functions_eagerly(False)
  small_tasks.assert_close(
    small_tasks.state_of(compiled), small_tasks.state_of(eager), 1e-6
  )

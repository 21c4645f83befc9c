"""Building a Task: wrong shapes, scopes and variables are named."""

import logging

import keras
import tensorflow as tf

from tests.support import error_lines
from tests.support import numpy_network
from tests.support import small_tasks
from tests.support import step_runs
import tftrain
from tftrain import errors


def test_wrong_shapes():
  x, y = small_tasks.arrays(features=5)
  with error_lines.refused(
    errors.InputError, 'float32[8, 5]', 'int64[8]', 'cannot take'
  ):
    small_tasks.trainer(tftrain.Arrays((x, y), 8))
  right = tftrain.Arrays(small_tasks.arrays(), 8)
  wrong = tftrain.Arrays((x, y), 8, training=False)
  with error_lines.refused(errors.InputError, "evaluation 'ood'"):
    built = small_tasks.trainer(right)
    tftrain.Evaluator(built.task, wrong, name='ood')
  with error_lines.refused(errors.InputError, '(features, labels)'):
    small_tasks.trainer(tftrain.Arrays({'x': x, 'y': y}, 8))


def test_a_model_built_outside_the_scope():
  model = small_tasks.model()
  make = lambda: tftrain.SupervisedTask(
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(),
  )
  with error_lines.refused(
    errors.TaskError, 'model/sequential/dense/kernel', 'scope'
  ):
    small_tasks.trainer(
      tftrain.Arrays(small_tasks.arrays(), 8), make, strategy='mirrored'
    )


def test_a_variable_created_in_a_step():
  class Late(tftrain.Task):
    made = None

    def loss(self, batch, training):
      if not tf.executing_eagerly() and self.made is None:
        self.made = tf.Variable(1.0, name='late')
      return tftrain.Loss(self.model(batch[0])[:, 0])

  run = small_tasks.trainer(
    tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: Late(small_tasks.model(), keras.optimizers.SGD()),
  )
  with error_lines.refused(errors.TaskError, 'late', 'constructor'):
    run.train(1)


class Hiding:
  """Neither a layer nor a module: nobody looks inside."""

  def __init__(self):
    self.scale = tf.Variable(2.0, name='secret')


class Mixed(keras.layers.Layer):
  """A Keras layer with a module in a list, and a plain object."""

  def __init__(self):
    super().__init__()
    self.parts = [step_runs.HalvingModule()]
    self.hiding = Hiding()
    self.idle = self.add_weight(shape=(2,), name='idle')

  def call(self, x):
    return self.parts[0](x) * self.hiding.scale


def test_variables_that_hide_or_idle_are_named(caplog):
  make = lambda: step_runs.Sharpness(Mixed(), keras.optimizers.SGD(0.1))
  with caplog.at_level(logging.WARNING):
    trainer, _ = step_runs.train(make, 1)
  assert 'No gradient reaches model/mixed/idle; nothing' in caplog.text
  assert 'Sharpness reads variables that are hidden from it (secret' in (
    caplog.text
  )
  names = trainer.task.step_runner.appliers()['optimizer'].trained
  assert 'model/parts/0/gain' in names
  assert 'model/parts/0/dense/mixed/dense/kernel' in names


def test_zero_gradients_are_named_at_step_one(caplog):
  def make():
    relu = keras.layers.Dense(
      4, 'relu', bias_initializer=keras.initializers.Constant(-1000.0)
    )
    model = keras.Sequential([keras.Input((6,)), relu, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD(0.1))

  with caplog.at_level(logging.WARNING):
    step_runs.train(make, 100)
  for step in (1, 100):
    assert (
      f'Step {step}: the gradient of model/sequential/dense/kernel, '
      'model/sequential/dense/bias, model/sequential/dense_1/kernel is zero'
    ) in caplog.text


def test_a_lazily_built_layer_starts_at_its_initial_values():
  layers = [keras.layers.Dense(3), keras.layers.BatchNormalization()]
  make = lambda: step_runs.OwnStep(
    keras.Sequential(layers), keras.optimizers.SGD(0.1)
  )
  trainer, _ = step_runs.train(make, 0)
  assert trainer.task.model.layers[1].moving_mean.numpy().any() == 0


def test_a_model_that_only_the_step_calls_is_built_and_trained():
  trainer, report = step_runs.train(step_runs.of(step_runs.Critic), 3)
  assert report.scalars['critic/loss'] >= 0
  appliers = trainer.task.step_runner.appliers()
  assert list(appliers['critic_optimizer'].trained) == [
    'critic/sequential/dense/kernel',
    'critic/sequential/dense/bias',
  ]


def test_a_model_from_outside_the_scope():
  model = small_tasks.model()
  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  make = lambda: tftrain.SupervisedTask(model, loss, keras.optimizers.SGD())
  numpy_network.refuses(
    ('model/sequential/dense/kernel', 'scope'),
    {'ema': 0.9, 'accumulate': 2},
    make,
    strategy='mirrored',
  )

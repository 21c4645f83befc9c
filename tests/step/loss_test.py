"""Bad input: one line before step 1 that says what to change."""

import os
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
import tftrain
from tftrain import errors
from tftrain.distribute import strategy as strategy_lib


def trainer(data, make=cases.supervised, strategy='one_device', **options):
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = make()
  return tftrain.Trainer(task, data, strategy=strategy, **options)


def refused(kind, *fragments):
  """Expects an error of one line with these fragments."""
  return _Refused(kind, fragments)


class _Refused:
  def __init__(self, kind, fragments):
    self._raises = pytest.raises(kind)
    self._fragments = fragments

  def __enter__(self):
    self._info = self._raises.__enter__()

  def __exit__(self, *exc):
    swallowed = self._raises.__exit__(*exc)
    if swallowed:
      text = str(self._info.value)
      assert '\n' not in text
      for fragment in self._fragments:
        assert fragment in text
    return swallowed


def test_no_data():
  x, y = cases.arrays()
  with refused(errors.InputError, '0 examples'):
    tftrain.Arrays((x[:0], y[:0]), 8)
  with refused(errors.InputError, '0 batches'):
    trainer([])
  with refused(errors.InputError, '0 batches'):
    trainer(tf.data.Dataset.from_tensor_slices((x, y)).take(0).batch(8))
  filtered = tf.data.Dataset.from_tensor_slices((x, y))
  filtered = filtered.filter(lambda *_: False).batch(8)
  with refused(errors.InputError, '0 batches'):
    trainer(filtered)
  with refused(errors.InputError, '0 batches'):
    tftrain.Evaluator(cases.supervised(), [])


def test_data_of_the_wrong_kind():
  x, y = cases.arrays()
  with refused(errors.InputError, '.batch(n)'):
    trainer(tf.data.Dataset.from_tensor_slices((x, y)))
  with refused(errors.InputError, 'only once', 'function'):
    trainer(iter([(x, y)]))
  with refused(errors.InputError, 'ndarray', 'tftrain.data.Arrays'):
    trainer(x)
  with refused(errors.InputError, '67, 66 rows'):
    tftrain.Arrays((x, y[1:]), 8)
  with refused(errors.InputError, 'object'):
    tftrain.Arrays(np.array([[1], [2, 3]], dtype=object), 1)


def test_wrong_shapes():
  x, y = cases.arrays(features=5)
  with refused(errors.InputError, 'float32[8, 5]', 'int64[8]', 'cannot take'):
    trainer(tftrain.Arrays((x, y), 8))
  right = tftrain.Arrays(cases.arrays(), 8)
  wrong = tftrain.Arrays((x, y), 8, training=False)
  with refused(errors.InputError, "evaluation 'ood'"):
    built = trainer(right)
    tftrain.Evaluator(built.task, wrong, name='ood')
  with refused(errors.InputError, '(features, labels)'):
    trainer(tftrain.Arrays({'x': x, 'y': y}, 8))


def test_labels_out_of_range():
  x, y = cases.arrays()
  y[-1] = 3  # not in the first batch
  with refused(errors.InputError, 'labels range from 0 to 3', '3 outputs'):
    trainer(tftrain.Arrays((x, y), 8))
  with refused(errors.InputError, 'Received a label value of 3'):
    trainer([(x[-8:], y[-8:])])


def test_a_bad_label_deep_in_a_stream_names_its_step():
  x, y = cases.arrays()
  bad = y.copy()
  bad[:] = 7
  run = trainer([(x, y), (x, y), (x, bad)])
  with refused(errors.InputError, 'step 3', 'label value of 7'):
    run.train(10)


def test_a_model_built_outside_the_scope():
  model = cases.model()
  make = lambda: tftrain.SupervisedTask(
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(),
  )
  with refused(errors.TaskError, 'model/sequential/dense/kernel', 'scope'):
    trainer(tftrain.Arrays(cases.arrays(), 8), make, strategy='mirrored')


def test_a_batch_size_that_does_not_divide_by_the_replicas():
  with refused(errors.InputError, 'batch_size 7', '2 replicas', '6 or 8'):
    trainer(tftrain.Arrays(cases.arrays(), 7), strategy='mirrored')


def test_an_unknown_strategy():
  with refused(errors.StrategyError, "'mirored'", 'one_device, mirrored'):
    tftrain.make_strategy('mirored')
  with refused(errors.StrategyError, 'too late'):
    strategy_lib.set_local_devices(3)


def test_losses_of_the_wrong_kind():
  data = tftrain.Arrays(cases.arrays(), 8)

  def task_with(loss):
    task = type('Mine', (tftrain.Task,), {'loss': loss})
    return lambda: task(cases.model(), keras.optimizers.Adam())

  with refused(errors.TaskError, 'Loss(values)'):
    trainer(data, task_with(lambda self, batch, training: 1.0))
  with refused(errors.TaskError, 'one number per example', '(8, 3)'):
    trainer(
      data,
      task_with(lambda self, b, training: tftrain.Loss(self.model(b[0]))),
    )
  with refused(errors.TaskError, 'no gradient reaches', 'kernel'):
    trainer(
      data,
      task_with(lambda self, b, training: tftrain.Loss(b[0][:, 0])),
    )
  with refused(errors.TaskError, '`loss`', 'rename'):
    trainer(
      data,
      task_with(
        lambda self, b, training: tftrain.Loss(
          self.model(b[0])[:, 0], **{'loss': 1.0}
        )
      ),
    )
  with refused(errors.TaskError, 'no optimizer'):
    trainer([cases.regression()], lambda: cases.weighted(optimizer=None))
  with refused(errors.TaskError, 'no loss(batch, training)'):
    trainer(data, lambda: tftrain.Task(cases.model(), keras.optimizers.SGD()))


def test_a_variable_created_in_a_step():
  class Late(tftrain.Task):
    made = None

    def loss(self, batch, training):
      if not tf.executing_eagerly() and self.made is None:
        self.made = tf.Variable(1.0, name='late')
      return tftrain.Loss(self.model(batch[0])[:, 0])

  run = trainer(
    tftrain.Arrays(cases.arrays(), 8),
    lambda: Late(cases.model(), keras.optimizers.SGD()),
  )
  with refused(errors.TaskError, 'late', 'constructor'):
    run.train(1)


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
  x, y = cases.arrays(examples=80)
  # Of a feature a ReLU makes 0 on some CPUs, so that the loss is a number.
  weights = np.where(np.arange(80) == 77, np.nan, 1).astype('float32')
  batches = [
    (x[i : i + 8], y[i : i + 8], weights[i : i + 8]) for i in range(0, 80, 8)
  ]
  run = tftrain.Experiment(
    cases.supervised, lambda: batches, steps=100, checkpoint_every=4
  ).prepare(tmp_path)
  with refused(errors.NonFiniteError, 'step 10', 'loss nan', 'not applied'):
    run.train()
  assert run.trainer.step == 10
  assert run.trainer.updates == 9
  assert run.checkpointer.steps()[-1] == 8
  weights = run.trainer.task.model.get_weights()
  assert all(np.isfinite(weight).all() for weight in weights)


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_a_non_finite_step_changes_no_weight_and_no_slot(strategy):
  x, y = cases.arrays(examples=32)
  bad = x[8:16].copy()
  bad[7] = np.inf  # on the last replica only
  run = trainer([(x[:8], y[:8]), (bad, y[8:16])], strategy=strategy)
  run.train(1)
  before = cases.state_of(run)
  with refused(errors.NonFiniteError, 'step 2'):
    run.train(5)
  after = cases.state_of(run)
  assert (before.pop('trainer/step'), after.pop('trainer/step')) == (1, 2)
  before.pop('trainer/means'), after.pop('trainer/means')
  cases.assert_same_bits(before, after)


def test_an_unwritable_model_dir(tmp_path):
  (tmp_path / 'file').write_text('')
  experiment = tftrain.Experiment(
    cases.supervised, lambda: tftrain.Arrays(cases.arrays(), 8), steps=2
  )
  with refused(errors.RunDirectoryError, 'Not a directory', 'model_dir'):
    experiment.train(tmp_path / 'file' / 'run')
  # Root may write anywhere, so be somebody else, in a place he can reach.
  with tempfile.TemporaryDirectory() as directory:
    os.chmod(directory, 0o555)
    user = os.geteuid()
    try:
      if user == 0:
        os.seteuid(65534)
      with refused(errors.RunDirectoryError, 'cannot write to', 'denied'):
        experiment.train(f'{directory}/run')
    finally:
      os.seteuid(user)


@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_optimizers_that_go_wrong_are_refused(strategy):
  data = tftrain.Arrays(cases.arrays(), 8)
  optimizers = keras.optimizers
  wrong = {
    'loss scale': [
      lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.1)),
      lambda: optimizers.SGD(0.1, loss_scale_factor=8.0),
    ],
    'tftrain.Update(accumulate=...)': [
      lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2)
    ],
    'tftrain.Update(ema=...)': [
      lambda: optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3)
    ],
    'tftrain.Update(clip_norm=...)': [
      lambda: optimizers.SGD(0.1, global_clipnorm=1.0)
    ],
    'tftrain.Update(clip_norm=..., the norm of all gradients)': [
      lambda: optimizers.SGD(0.1, clipnorm=1.0)
    ],
    'tftrain.Update(clip_value=...)': [
      lambda: optimizers.SGD(0.1, clipvalue=1.0)
    ],
  }
  for fragment, makes in wrong.items():
    for make in makes:
      with refused(errors.TaskError, fragment):
        trainer(data, lambda make=make: cases.supervised(make()), strategy)


def test_what_is_no_function_is_named():
  data = lambda: tftrain.Arrays(cases.arrays(), 8)
  with refused(errors.ConfigError, 'Experiment.task', 'function'):
    tftrain.Experiment(cases.supervised(), data, steps=1)
  with refused(errors.ConfigError, 'Experiment.train_data is a Arrays'):
    tftrain.Experiment(cases.supervised, data(), steps=1)
  with refused(errors.TaskError, "'mse'", 'MeanSquaredError()'):
    tftrain.SupervisedTask(cases.model(), 'mse', keras.optimizers.SGD())
  with refused(errors.TaskError, 'metrics'):
    tftrain.SupervisedTask(
      cases.model(),
      keras.losses.mean_squared_error,
      keras.optimizers.SGD(),
      ['accuracy'],
    )
  with refused(errors.ConfigError, '[action]'):
    trainer(data()).train(1, print)
  with refused(errors.InputError, 'Arrays((x, y), batch_size)'):
    trainer(cases.arrays())
  early_stop = tftrain.EarlyStopping('eval/tset/loss')
  with refused(errors.ConfigError, 'eval/tset/loss', 'eval/test/loss'):
    tftrain.Experiment(
      cases.supervised,
      data,
      lambda: tftrain.Arrays(cases.arrays(), 8, training=False),
      steps=1,
      early_stop=early_stop,
    ).prepare('/nowhere')


def test_an_evaluation_that_would_never_end():
  x, y = cases.arrays()
  endless = tf.data.Dataset.from_tensors((x, y)).repeat()
  for data in (tftrain.Arrays((x, y), 8), endless):
    with refused(errors.InputError, 'never ends', 'training=False'):
      tftrain.Evaluator(cases.supervised(), data)


def test_numbers_of_the_wrong_length_are_refused():
  data = tftrain.Arrays(cases.arrays(), 8)

  def make(values, **others):
    loss = lambda self, b, training: tftrain.Loss(
      values(self.model(b[0])), **{k: f(b) for k, f in others.items()}
    )
    task = type('Mine', (tftrain.Task,), {'loss': loss})
    return lambda: task(cases.model(), keras.optimizers.SGD())

  right = lambda logits: logits[:, 0]
  with refused(errors.TaskError, 'values has 24 entries for 8'):
    trainer(data, make(lambda logits: tf.reshape(logits, [-1])))
  with refused(errors.TaskError, 'weights has 1 entries for 8'):
    trainer(data, make(right, weights=lambda b: tf.ones([1])))
  with refused(errors.TaskError, 'extra has 1 entries for 8'):
    trainer(data, make(right, extra=lambda b: tf.ones([1])))
  with refused(errors.TaskError, '`gradient_norm`'):
    trainer(data, make(right, gradient_norm=lambda b: tf.ones([8])))
  with refused(errors.TaskError, "'step'", 'rename'):
    trainer(data, make(right, step=lambda b: tf.ones([8])))
  with refused(errors.TaskError, "'loss'", 'rename'):
    metric = {'loss': keras.metrics.SparseCategoricalAccuracy()}
    trainer(data, lambda: cases.supervised(metrics=metric))


def test_a_layer_shared_by_two_attributes_is_regularized_once():
  def make(shared):
    keras.utils.set_random_seed(0)
    task = cases.supervised(regularizer=keras.regularizers.L2(1.0))
    if shared:
      task.again = task.model.layers[0]
    return task

  data = tftrain.Arrays(cases.arrays(), 8, training=False)
  losses = [
    tftrain.Evaluator(make(shared), data).evaluate()['loss']
    for shared in (False, True)
  ]
  assert losses[0] == losses[1]


def test_freezing_a_layer_too_late_is_refused():
  run = trainer(tftrain.Arrays(cases.arrays(), 8))
  run.task.model.layers[0].trainable = False
  with refused(errors.TaskError, 'dense/', 'freeze layers before'):
    run.train(1)


def test_a_layer_frozen_before_stays_as_it_is():
  def make():
    task = cases.supervised()
    task.model.layers[0].trainable = False
    return task

  run = trainer(tftrain.Arrays(cases.arrays(), 8), make)
  before = [v.numpy() for v in run.task.model.layers[0].variables]
  run.train(5)
  for value, variable in zip(
    before, run.task.model.layers[0].variables, strict=True
  ):
    np.testing.assert_array_equal(value, variable.numpy())


def test_what_is_trained_and_not_found_again_is_refused():
  class Hidden(cases.Weighted):
    def __init__(self, model):
      super().__init__(model)
      self._hidden = keras.optimizers.SGD(0.1)

    def train_step(self, batch):
      return self.minimize(self.loss, batch, optimizer=self._hidden)

  with refused(errors.TaskError, 'SGD is trained but not found', 'start with'):
    trainer(
      tftrain.Arrays(cases.regression(), 8),
      lambda: Hidden(cases.weighted(None).model),
    )


def test_masks_are_refused_and_not_dropped():
  def make():
    layers = keras.layers
    model = keras.Sequential(
      [
        keras.Input((4,), dtype='int32'),
        layers.Embedding(9, 3, mask_zero=True),
        layers.Dense(5),
      ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD())

  tokens = np.ones((8, 4), 'int32')
  with refused(errors.TaskError, 'masks', 'weight 0'):
    trainer([(tokens, tokens)], make)


def test_models_in_double_precision_and_lists_of_lists_train():
  def make():
    layers = [keras.Input((6,)), keras.layers.Dense(3, dtype='float64')]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(
      keras.Sequential(layers), loss, keras.optimizers.SGD(0.1)
    )

  x, y = cases.arrays(8)
  run = trainer([[x, y]], make)
  assert run.train(3).scalars['loss'] > 0


def test_random_numbers_that_no_checkpoint_holds_are_warned_of(caplog):
  class Noisy(cases.Weighted):
    def loss(self, batch, training):
      noise = tf.random.normal([8]) if training else 0.0
      values = self.model(batch[0])[:, 0] ** 2
      return tftrain.Loss(values + noise)

  run = trainer(
    tftrain.Arrays(cases.regression(), 8),
    lambda: Noisy(cases.weighted(None).model, keras.optimizers.SGD()),
  )
  run.train(1)
  assert 'RandomStandardNormal' in caplog.text
  caplog.clear()
  dropout = lambda: cases.supervised(dropout=0.5)
  trainer(tftrain.Arrays(cases.arrays(), 8), dropout).train(1)
  assert 'random' not in caplog.text


def test_settings_that_make_no_sense():
  data = lambda: [cases.arrays()]
  with refused(errors.ConfigError, "steps must be a positive number, got '9'"):
    tftrain.Experiment(cases.supervised, data, steps='9')
  with refused(errors.ConfigError, 'seed', '-1'):
    tftrain.Experiment(cases.supervised, data, steps=1, seed=-1)
  with refused(errors.ConfigError, 'whole number, got 10.0'):
    trainer(data).train(1e1)
  with refused(errors.InputError, 'batch_size', '8.0'):
    tftrain.Arrays(cases.arrays(), 8.0)
  with refused(errors.TaskError, "'adam' is no optimizer"):
    trainer(data, lambda: cases.supervised('adam'))
  with refused(errors.ConfigError, 'steps or epochs', 'neither'):
    tftrain.Experiment(cases.supervised, list)
  with refused(errors.ConfigError, 'both'):
    tftrain.Experiment(cases.supervised, list, steps=1, epochs=1)
  with refused(errors.ConfigError, 'steps', '-1'):
    tftrain.Experiment(cases.supervised, list, steps=-1)
  with refused(errors.ConfigError, "'10 parsecs'", "'30s'"):
    tftrain.Every('10 parsecs', print)
  with refused(errors.ConfigError, 'steps_per_loop', '0'):
    trainer(tftrain.Arrays(cases.arrays(), 8), steps_per_loop=0)
  data = lambda: [cases.arrays()]
  experiment = tftrain.Experiment(cases.supervised, data, epochs=2)
  with refused(errors.ConfigError, 'epochs', 'steps'):
    experiment.prepare('/nowhere')
  with refused(errors.TaskError, 'Experiment.task made a Sequential'):
    tftrain.Experiment(cases.model, data, steps=1).prepare('/nowhere')

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
from tftrain import strategies


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
  with refused(errors.InputError, 'ndarray', 'tftrain.inputs.Arrays'):
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
    strategies.set_local_devices(3)


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
  x[77] = np.nan
  batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 80, 8)]
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
    'several replicas': [
      lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
      lambda: optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=3),
    ],
  }
  for fragment, makes in wrong.items():
    for make in makes:
      if fragment == 'several replicas' and strategy == 'one_device':
        trainer(data, lambda make=make: cases.supervised(make())).train(3)
        continue
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
      cases.supervised, data, data, steps=1, early_stop=early_stop
    ).prepare('/nowhere')


def test_settings_that_make_no_sense():
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

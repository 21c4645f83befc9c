"""Values of an Experiment that make no sense: refused by name."""

import keras

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors


def test_what_is_no_function_is_named():
  data = lambda: tftrain.Arrays(small_tasks.arrays(), 8)
  with error_lines.refused(errors.ConfigError, 'Experiment.task', 'function'):
    tftrain.Experiment(small_tasks.supervised(), data, steps=1)
  with error_lines.refused(
    errors.ConfigError, 'Experiment.train_data is a Arrays'
  ):
    tftrain.Experiment(small_tasks.supervised, data(), steps=1)
  with error_lines.refused(errors.TaskError, "'msee'", 'MeanSquaredError()'):
    tftrain.SupervisedTask(small_tasks.model(), 'msee', keras.optimizers.SGD())
  with error_lines.refused(errors.TaskError, 'metrics'):
    tftrain.SupervisedTask(
      small_tasks.model(),
      keras.losses.mean_squared_error,
      keras.optimizers.SGD(),
      keras.metrics.AUC(),
    )
  with error_lines.refused(errors.ConfigError, '[action]'):
    small_tasks.trainer(data()).train(1, print)
  with error_lines.refused(errors.InputError, 'Arrays((x, y), batch_size)'):
    small_tasks.trainer(small_tasks.arrays())
  early_stop = tftrain.EarlyStopping('eval/tset/loss')
  with error_lines.refused(
    errors.ConfigError, 'eval/tset/loss', 'eval/test/loss'
  ):
    tftrain.Experiment(
      small_tasks.supervised,
      data,
      lambda: tftrain.Arrays(small_tasks.arrays(), 8, training=False),
      steps=1,
      early_stop=early_stop,
    ).prepare('/nowhere')


def test_settings_that_make_no_sense():
  data = lambda: [small_tasks.arrays()]
  with error_lines.refused(
    errors.ConfigError, "steps must be a positive number, got '9'"
  ):
    tftrain.Experiment(small_tasks.supervised, data, steps='9')
  with error_lines.refused(errors.ConfigError, 'seed', '-1'):
    tftrain.Experiment(small_tasks.supervised, data, steps=1, seed=-1)
  for steps in (1e1, True, -1):
    with error_lines.refused(errors.ConfigError, f'at least 0, got {steps}'):
      small_tasks.trainer(data).train(steps)
  with error_lines.refused(errors.InputError, 'batch_size', '8.0'):
    tftrain.Arrays(small_tasks.arrays(), 8.0)
  with error_lines.refused(errors.TaskError, "'adamm' is no optimizer"):
    small_tasks.trainer(data, lambda: small_tasks.supervised('adamm'))
  with error_lines.refused(errors.ConfigError, 'steps or epochs', 'neither'):
    tftrain.Experiment(small_tasks.supervised, list)
  with error_lines.refused(errors.ConfigError, 'both'):
    tftrain.Experiment(small_tasks.supervised, list, steps=1, epochs=1)
  with error_lines.refused(errors.ConfigError, 'steps', '-1'):
    tftrain.Experiment(small_tasks.supervised, list, steps=-1)
  with error_lines.refused(errors.ConfigError, "'10 parsecs'", "'30s'"):
    tftrain.Every('10 parsecs', print)
  with error_lines.refused(errors.ConfigError, 'steps_per_loop', '0'):
    small_tasks.trainer(
      tftrain.Arrays(small_tasks.arrays(), 8), steps_per_loop=0
    )
  data = lambda: [small_tasks.arrays()]
  experiment = tftrain.Experiment(small_tasks.supervised, data, epochs=2)
  with error_lines.refused(errors.ConfigError, 'epochs', 'steps'):
    experiment.prepare('/nowhere')
  with error_lines.refused(
    errors.TaskError, 'Experiment.task made a Sequential'
  ):
    tftrain.Experiment(small_tasks.model, data, steps=1).prepare('/nowhere')

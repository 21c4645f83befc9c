"""A Trainer of a small task, and an Action that notes its steps."""

import keras

from tests.support import small_tasks
import tftrain


def trainer(data=None, strategy='one_device', **options):
  keras.utils.set_random_seed(0)
  data = tftrain.Arrays(small_tasks.arrays(), 8) if data is None else data
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    task = small_tasks.supervised(dropout=0.2)
  return tftrain.Trainer(task, data, strategy=strategy, **options)


class Steps(list):
  """An Action that notes the steps at which it was called."""

  def __call__(self, report):
    self.append(report.step)

"""Short runs, and their summaries read back."""

import tensorflow as tf

from tests.support import event_files
from tests.support import small_tasks
import tftrain


def written(directory, tag):
  """(plugin, steps, the last value) of a tag."""
  found = event_files.events(directory)
  plugin = found.SummaryMetadata(tag).plugin_data.plugin_name
  tensors = found.Tensors(tag)
  last = tf.make_ndarray(tensors[-1].tensor_proto)
  return plugin, [event.step for event in tensors], last


def train(tmp_path, task=small_tasks.supervised, steps=4, **options):
  return tftrain.Experiment(
    task,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(seed=1), 8, training=False),
    steps=steps,
    **{'eval_every': 2, 'log_every': 2, 'export': False, **options},
  ).train(tmp_path)

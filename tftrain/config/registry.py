"""Registry of the classes that gin files can configure.

The classes of all packages of tftrain are registered under the module
`tftrain`: a gin file says `tftrain.Update` or `Update`.
"""

import inspect

import gin
from gin import config as gin_config
import keras

from tftrain.actions import digests as digests_lib
from tftrain.actions import early_stopping
from tftrain.actions import exporter as exporter_lib
from tftrain.actions import histograms
from tftrain.actions import loss_spike
from tftrain.actions import profiler
from tftrain.checkpoint import retention
from tftrain.data import arrays
from tftrain.data import batching
from tftrain.data import dataset_pipeline
from tftrain.data import example_pipeline
from tftrain.data import limit
from tftrain.data.sources import folders
from tftrain.data.sources import generator
from tftrain.data.sources import in_memory
from tftrain.data.sources import mixture
from tftrain.data.sources import text
from tftrain.data.sources import tfrecord
from tftrain.data.sources import third_party
from tftrain.experiment import experiment as experiment_lib
from tftrain.experiment import rewind as rewind_lib
from tftrain.experiment import warm_start
from tftrain.report import every as every_lib
from tftrain.step import schedules
from tftrain.step import update_options
from tftrain.summary import metric_writer
from tftrain.task import supervised_task

_PUBLIC = (
  early_stopping.EarlyStopping,
  every_lib.Every,
  digests_lib.Digests,
  experiment_lib.Experiment,
  exporter_lib.Export,
  histograms.WeightHistograms,
  third_party.ArrayRecord,
  arrays.Arrays,
  dataset_pipeline.DatasetPipeline,
  batching.Bucketed,
  text.Csv,
  example_pipeline.Examples,
  limit.FirstBatches,
  generator.Generator,
  folders.ImageFolder,
  in_memory.InMemory,
  text.JsonLines,
  mixture.Mapped,
  mixture.Mixture,
  in_memory.Npz,
  batching.Packed,
  batching.Padded,
  third_party.Parquet,
  batching.Ragged,
  in_memory.RandomAccess,
  tfrecord.TFRecords,
  folders.TextFiles,
  text.TextLines,
  third_party.Tfds,
  profiler.Profiler,
  retention.KeepBest,
  rewind_lib.Rewind,
  schedules.InverseSqrtDecay,
  schedules.JoinedSchedules,
  schedules.LinearWarmup,
  metric_writer.CsvWriter,
  loss_spike.LossSpike,
  supervised_task.SupervisedTask,
  update_options.Update,
  warm_start.WarmStart,
)

# Functions of Keras that build objects of any module, named in a dict.
_FROM_DICTS = ('deserialize', 'get', 'serialize')


def forget() -> None:
  """Clears the configuration of gin, so that another can be loaded."""
  gin.clear_config()


def register() -> None:
  """Registers the public classes and those of Keras with gin; idempotent."""
  if gin_config._REGISTRY.matching_selectors('tftrain.Experiment'):
    return
  for cls in _PUBLIC:
    gin.external_configurable(cls, module='tftrain')
  groups = {
    'keras.optimizers': (keras.optimizers, keras.Optimizer),
    'keras.optimizers.schedules': (
      keras.optimizers.schedules,
      keras.optimizers.schedules.LearningRateSchedule,
    ),
    'keras.losses': (keras.losses, keras.losses.Loss),
    'keras.metrics': (keras.metrics, keras.Metric),
  }
  for module, (namespace, base) in groups.items():
    for name, value in sorted(vars(namespace).items()):
      is_class = inspect.isclass(value) and issubclass(value, base)
      is_function = inspect.isfunction(value) and not name.startswith('_')
      if is_class or (is_function and name not in _FROM_DICTS):
        gin.external_configurable(value, name=name, module=module)

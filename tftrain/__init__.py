"""tftrain: training loops for TensorFlow 2 and Keras 3.

A Trainer takes steps and reports; an Action receives the Report; everything
else is an Action.

This is the only door. It opens lazily: importing it does not import TensorFlow.
"""

import importlib
import typing
from typing import Any

__version__ = '0.1.0'

_HOMES = {
  'Action': 'reports',
  'Arrays': 'inputs',
  'Audio': 'artifacts',
  'Batches': 'inputs',
  'Best': 'retention',
  'Checkpointer': 'checkpoints',
  'CsvSink': 'sinks',
  'Digests': 'digests',
  'EarlyStopping': 'actions',
  'Error': 'errors',
  'Evaluator': 'evaluators',
  'Every': 'actions',
  'Experiment': 'experiments',
  'Export': 'exporters',
  'Histogram': 'artifacts',
  'Histograms': 'histograms',
  'InverseSqrt': 'schedules',
  'Joined': 'schedules',
  'Loss': 'losses',
  'LossSpike': 'spikes',
  'MetricsFile': 'summaries',
  'NonFiniteError': 'errors',
  'Pipeline': 'inputs',
  'PrCurve': 'artifacts',
  'Profile': 'profiles',
  'Progress': 'progress',
  'Report': 'reports',
  'Result': 'runs',
  'Rewind': 'rewinds',
  'Signal': 'reports',
  'Signature': 'signatures',
  'Sink': 'sinks',
  'SummaryWriter': 'summaries',
  'SupervisedTask': 'supervised',
  'Table': 'artifacts',
  'Task': 'tasks',
  'Trainer': 'trainers',
  'Update': 'updates',
  'WarmStart': 'warmstarts',
  'WarmUp': 'schedules',
  'confusion_matrix': 'artifacts',
  'export_model': 'exports',
  'inputs': None,
  'launch': None,
  'make_strategy': 'strategies',
  'stop_on_signal': 'preemption',
  'testing': None,
}

__all__ = [
  'Action',
  'Arrays',
  'Audio',
  'Batches',
  'Best',
  'Checkpointer',
  'CsvSink',
  'Digests',
  'EarlyStopping',
  'Error',
  'Evaluator',
  'Every',
  'Experiment',
  'Export',
  'Histogram',
  'Histograms',
  'InverseSqrt',
  'Joined',
  'Loss',
  'LossSpike',
  'MetricsFile',
  'NonFiniteError',
  'Pipeline',
  'PrCurve',
  'Profile',
  'Progress',
  'Report',
  'Result',
  'Rewind',
  'Signal',
  'Signature',
  'Sink',
  'SummaryWriter',
  'SupervisedTask',
  'Table',
  'Task',
  'Trainer',
  'Update',
  'WarmStart',
  'WarmUp',
  'confusion_matrix',
  'export_model',
  'inputs',
  'launch',
  'make_strategy',
  'stop_on_signal',
  'testing',
]

if typing.TYPE_CHECKING:
  from tftrain import inputs as inputs
  from tftrain import launch as launch
  from tftrain import testing as testing
  from tftrain.actions import EarlyStopping as EarlyStopping
  from tftrain.actions import Every as Every
  from tftrain.artifacts import Audio as Audio
  from tftrain.artifacts import confusion_matrix as confusion_matrix
  from tftrain.artifacts import Histogram as Histogram
  from tftrain.artifacts import PrCurve as PrCurve
  from tftrain.artifacts import Table as Table
  from tftrain.checkpoints import Checkpointer as Checkpointer
  from tftrain.digests import Digests as Digests
  from tftrain.errors import Error as Error
  from tftrain.errors import NonFiniteError as NonFiniteError
  from tftrain.evaluators import Evaluator as Evaluator
  from tftrain.experiments import Experiment as Experiment
  from tftrain.exporters import Export as Export
  from tftrain.exports import export_model as export_model
  from tftrain.histograms import Histograms as Histograms
  from tftrain.inputs import Arrays as Arrays
  from tftrain.inputs import Batches as Batches
  from tftrain.inputs import Pipeline as Pipeline
  from tftrain.losses import Loss as Loss
  from tftrain.preemption import stop_on_signal as stop_on_signal
  from tftrain.profiles import Profile as Profile
  from tftrain.progress import Progress as Progress
  from tftrain.reports import Action as Action
  from tftrain.reports import Report as Report
  from tftrain.reports import Signal as Signal
  from tftrain.retention import Best as Best
  from tftrain.rewinds import Rewind as Rewind
  from tftrain.runs import Result as Result
  from tftrain.schedules import InverseSqrt as InverseSqrt
  from tftrain.schedules import Joined as Joined
  from tftrain.schedules import WarmUp as WarmUp
  from tftrain.signatures import Signature as Signature
  from tftrain.sinks import CsvSink as CsvSink
  from tftrain.sinks import Sink as Sink
  from tftrain.spikes import LossSpike as LossSpike
  from tftrain.strategies import make_strategy as make_strategy
  from tftrain.summaries import MetricsFile as MetricsFile
  from tftrain.summaries import SummaryWriter as SummaryWriter
  from tftrain.supervised import SupervisedTask as SupervisedTask
  from tftrain.tasks import Task as Task
  from tftrain.trainers import Trainer as Trainer
  from tftrain.updates import Update as Update
  from tftrain.warmstarts import WarmStart as WarmStart

else:  # hidden from type checkers, who would believe any name to be there

  def __getattr__(name: str) -> Any:
    if name not in _HOMES:
      raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    home = _HOMES[name]
    if home is None:
      return importlib.import_module(f'{__name__}.{name}')
    return getattr(importlib.import_module(f'{__name__}.{home}'), name)


def __dir__() -> list[str]:
  return __all__

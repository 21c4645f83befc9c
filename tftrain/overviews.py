"""Overviews: what is trained, shown once beside its curves."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from absl import logging
import keras
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.graph import keras_util
import tensorflow as tf

from tftrain import artifacts
from tftrain import errors
from tftrain import tasks
from tftrain import variables as variables_lib


@dataclasses.dataclass(frozen=True)
class Graph:
  """The layers of a Keras model, for TensorBoard's Graphs tab.

  Attributes:
    config: The model as JSON.
  """

  config: str

  def fault(self) -> str | None:
    return None

  def write(self, tag: str) -> None:
    tf.summary.write(
      tag,
      self.config,
      metadata=summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(
          plugin_name='graph_keras_model', content=b'1'
        )
      ),
    )


def of_task(task: tasks.Task) -> dict[str, artifacts.Artifact]:
  """Tag -> what to show of a built Task: its parameters and its models."""
  owned = variables_lib.owned_by(task)
  shown: dict[str, artifacts.Artifact] = {'parameters': _parameters(owned)}
  for name, layer in owned.layers.items():
    if graph := _graph(name, layer):
      shown[f'graph/{name}'] = graph
  return shown


def _parameters(owned: variables_lib.Owned) -> artifacts.Table:
  """How many each layer has, in order, and all of them."""
  found: dict[str, list[int]] = {}
  for name, variable in owned.variables.items():
    counts = found.setdefault(name.rpartition('/')[0] or name, [0, 0])
    size = _size(variable)
    counts[0] += size
    counts[1] += size if variable.trainable else 0
  rows = [
    [f'`{name}`', _kind(owned.sublayers, name), *map(_thousands, counts)]
    for name, counts in found.items()
  ]
  totals = [sum(column) for column in zip(*found.values(), strict=True)]
  rows.append(['**all**', '', *map(_thousands, totals)])
  return artifacts.Table(['layer', 'kind', 'parameters', 'trainable'], rows)


def _size(variable: Any) -> int:
  return int(tf.TensorShape(variable.shape).num_elements() or 0)


def _kind(layers: Mapping[str, Any], name: str) -> str:
  return type(layers[name]).__name__ if name in layers else ''


def _thousands(count: int) -> str:
  return f'{count:,}'


def _graph(name: str, layer: Any) -> Graph | None:
  """None for what Keras or TensorBoard cannot describe: subclassed models."""
  if not isinstance(layer, keras.Model):
    return None
  try:
    config = layer.to_json()
    keras_util.keras_model_to_graph_def(json.loads(config))
  except Exception as error:  # not worth a run
    logging.info('No graph of %s is shown: %s', name, errors.one_line(error))
    return None
  return Graph(config)

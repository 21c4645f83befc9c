"""Parameter overview: table of parameters and model graph, shown once."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from absl import logging
import keras
from tensorboard.plugins.graph import keras_util
import tensorflow as tf

from tftrain import errors
from tftrain.interop import tracking
from tftrain.summary import artifacts as artifacts_lib
from tftrain.task import task as task_lib


@dataclasses.dataclass(frozen=True)
class Graph:
  """Layers of Keras models, for the Graphs tab of TensorBoard.

  Attributes:
    nodes: GraphDef whose nodes are layers.
  """

  nodes: Any

  def fault(self) -> str | None:
    return None

  def write(self, tag: str) -> None:
    del tag  # TensorBoard shows one graph of a run
    # Not a "conceptual graph", which users would have to select first.
    tf.summary.graph(self.nodes)


def of_task(task: task_lib.Task) -> dict[str, artifacts_lib.Artifact]:
  """Returns tag -> artifact: the parameters and models of a built Task."""
  owned = tracking.owned_by(task)
  shown: dict[str, artifacts_lib.Artifact] = {
    'parameters': _parameter_table(owned)
  }
  graph = tf.compat.v1.GraphDef()
  for name, layer in owned.layers.items():
    graph.node.extend(_nodes(name, layer))
  if graph.node:
    shown['graph'] = Graph(graph)
  return shown


def _parameter_table(owned: tracking.Owned) -> artifacts_lib.Table:
  """Returns a table of the parameters of each layer, with their total."""
  found: dict[str, list[int]] = {}
  for name, variable in owned.variables.items():
    counts = found.setdefault(name.rpartition('/')[0] or name, [0, 0])
    size = _num_entries(variable)
    counts[0] += size
    counts[1] += size if variable.trainable else 0
  rows = [
    [f'`{name}`', _layer_type(owned.sublayers, name), *map(_thousands, counts)]
    for name, counts in found.items()
  ]
  totals = [sum(column) for column in zip(*found.values(), strict=True)]
  rows.append(['**all**', '', *map(_thousands, totals)])
  return artifacts_lib.Table(['layer', 'kind', 'parameters', 'trainable'], rows)


def _num_entries(variable: Any) -> int:
  return int(tf.TensorShape(variable.shape).num_elements() or 0)


def _layer_type(layers: Mapping[str, Any], name: str) -> str:
  return type(layers[name]).__name__ if name in layers else ''


def _thousands(count: int) -> str:
  return f'{count:,}'


def _nodes(name: str, layer: Any) -> list[Any]:
  """Returns a node for each layer of a Keras model.

  The result is empty if Keras cannot describe the model (subclassed models), or
  TensorBoard cannot convert it.
  """
  if not isinstance(layer, keras.Model):
    return []
  graph = tf.compat.v1.GraphDef()
  try:
    found = keras_util.keras_model_to_graph_def(json.loads(layer.to_json()))
    graph.MergeFromString(found.SerializeToString())
  except Exception as error:  # the graph is optional
    logging.info('No graph of %s is shown: %s', name, errors.one_line(error))
  for node in graph.node:
    node.name = f'{name}/{node.name}'
    node.input[:] = [f'{name}/{one}' for one in node.input]
    node.op = node.attr['keras_class'].s.decode()
  return list(graph.node)

"""Signature: what an export offers under a name."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import inspect
from typing import Any

import numpy as np
import tensorflow as tf

from tftrain import errors
from tftrain.data import serving_decoder
from tftrain.task import task as task_lib

SERVE = 'serving_default'
"""What `Task.serve` is called in an export."""
RECORDS = 'examples'
"""What takes serialized tf.train.Examples."""

_PYTHON = ('PyFunc', 'EagerPyFunc', 'PyFuncStateless')


@dataclasses.dataclass(frozen=True)
class Signature:
  """A function of an export, and something real to try it on.

  >>> class Digits(tftrain.SupervisedTask):
  ...   def signatures(self, features):
  ...     return {'top': tftrain.export.Signature(self.top, {'image': features})}

  Attributes:
    function: Takes the inputs by their names; returns a tensor, or several in a
      dictionary or tuple.
    example: Name -> a batch of that input, `[batch, ...]`. The export must give
      what the live model gives for it.
    specs: Name -> tf.TensorSpec, where more than the batch size is free.
  """

  function: Callable[..., Any]
  example: Mapping[str, Any]
  specs: Mapping[str, tf.TensorSpec] = dataclasses.field(default_factory=dict)


def of_task(task: task_lib.Task, features: Any) -> dict[str, Signature]:
  """`serve`, and what else the Task offers."""

  def serve(**given: Any) -> Any:
    return task.serve(_packed(features, given))

  return {SERVE: Signature(serve, named('inputs', features)),
          **task.signatures(features)}  # fmt: skip


def of_part(part: Any, features: Any) -> dict[str, Signature]:
  """What a model of a Task computes alone."""

  def serve(**given: Any) -> Any:
    return part(_packed(features, given), training=False)

  return {SERVE: Signature(serve, named('inputs', features))}


def of_records(
  task: task_lib.Task, decoder: serving_decoder.Decoder
) -> Signature:
  """`serve` of serialized tf.train.Examples, decoded and mapped as the
  pipeline does it. Features that do not matter for it need not be there."""

  def serve(batch: Any) -> Any:
    return task.serve(task.features(batch))

  with task.calls():
    wanted = _reached(
      lambda mapped: serve(decoder.finish(mapped)), decoder.mapped_spec
    )
    names = _reached(
      lambda example: _leaves(decoder.map(example), wanted), decoder.spec
    )

  def serve_records(examples: tf.Tensor) -> Any:
    return serve(decoder.decode(examples, names, wanted))

  return Signature(serve_records, {RECORDS: np.array(decoder.records, object)})


def named(prefix: str, value: Any) -> dict[str, Any]:
  """Tensors by name: a dictionary's keys, `prefix`, or `prefix_0`, ..."""
  if isinstance(value, dict):
    return value
  leaves = tf.nest.flatten(value)
  if len(leaves) == 1:
    return {prefix: leaves[0]}
  return {f'{prefix}_{index}': leaf for index, leaf in enumerate(leaves)}


def trace(task: task_lib.Task, name: str, signature: Signature) -> Any:
  """Its ConcreteFunction, with a free batch size.

  Raises:
    ExportError: It takes no such input, needs a fixed batch size, or Python.
  """
  what = f'signature {name!r} of {type(task).__name__}'
  _check_names(what, signature)

  def run(**given: Any) -> dict[str, Any]:
    with task.calls():
      return named('outputs', signature.function(**given))

  def traced(free: bool) -> Any:
    specs = {
      key: signature.specs.get(key, _spec_of(key, value, free))
      for key, value in signature.example.items()
    }
    return tf.function(run).get_concrete_function(**specs)

  try:
    concrete = traced(free=True)
  except errors.Error:
    raise
  except Exception as error:
    text = f'{what} cannot be exported: {errors.one_line(error)}'
    if _works(lambda: traced(free=False)):
      text = (
        f'{what} works with a fixed batch size only: {errors.one_line(error)}'
        '; use -1 or tf.shape(x)[0] for the number of rows'
      )
    raise errors.ExportError(
      f'{text}; mend it, or train with export=False'
    ) from error
  _refuse_python(what, concrete)
  return concrete


def _check_names(what: str, signature: Signature) -> None:
  unknown = sorted(signature.specs.keys() - signature.example.keys())
  if unknown:
    raise errors.ExportError(
      f'{what} has a spec for {unknown[0]!r} and no example of it; there are '
      f'{", ".join(signature.example)}'
    )
  parameters = inspect.signature(signature.function).parameters.values()
  if any(p.kind is p.VAR_KEYWORD for p in parameters):
    return
  known = [p.name for p in parameters]
  for name in signature.example:
    if name not in known:
      raise errors.ExportError(
        f'{what} names the input {name!r}, which its function does not take; '
        f'it takes {", ".join(known)}'
      )


def _spec_of(name: str, value: Any, free: bool) -> tf.TensorSpec:
  value = tf.convert_to_tensor(value)
  batch = None if free else value.shape[0]
  return tf.TensorSpec([batch, *value.shape[1:]], value.dtype, name=name)


def _works(function: Callable[[], Any]) -> bool:
  try:
    function()
  except Exception:  # whatever a user's model raises: the first error counts
    return False
  return True


def _refuse_python(what: str, concrete: Any) -> None:
  definition = concrete.graph.as_graph_def()
  nodes = [*definition.node]
  for function in definition.library.function:
    nodes += function.node_def
  for node in nodes:
    if node.op in _PYTHON:
      raise errors.ExportError(
        f'{what} calls Python ({node.op} {node.name!r}: tf.py_function or '
        'tf.numpy_function), which no SavedModel can hold; write that with '
        'TensorFlow operations, or train with export=False'
      )


def _packed(like: Any, given: Mapping[str, Any]) -> Any:
  """The tensors of `given` in the structure of `like`, which named them."""
  if isinstance(like, dict):
    return dict(given)
  leaves = [given[name] for name in named('inputs', like)]
  return tf.nest.pack_sequence_as(like, leaves)


def _leaves(value: Any, indices: Any) -> list[Any]:
  leaves = tf.nest.flatten(value)
  return [leaves[index] for index in indices]


def _reached(function: Callable[[Any], Any], spec: Any) -> list[int]:
  """Which leaves of its argument the outcome of a function depends on."""
  leaves = tf.nest.flatten(spec)

  def run(*given: Any) -> Any:
    return function(tf.nest.pack_sequence_as(spec, given))

  graph = tf.function(run).get_concrete_function(*leaves).graph
  seen: set[str] = set()
  waiting = [tensor.op for tensor in graph.outputs]
  while waiting:
    op = waiting.pop()
    if op.name not in seen:
      seen.add(op.name)
      waiting += [tensor.op for tensor in op.inputs]
      waiting += op.control_inputs
  found, tensors = [], iter(graph.inputs)
  for index, leaf in enumerate(leaves):
    parts = tf.nest.flatten(leaf, expand_composites=True)
    names = [next(tensors).op.name for _ in parts]
    if seen.intersection(names):
      found.append(index)
  return found

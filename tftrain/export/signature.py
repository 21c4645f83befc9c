"""Signature: a named function of an exported model."""

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
"""Name of the signature of `Task.serve`."""
RECORDS = 'examples'
"""Name of the signature on serialized tf.train.Examples, and of its input."""

_PYTHON = ('PyFunc', 'EagerPyFunc', 'PyFuncStateless')


@dataclasses.dataclass(frozen=True)
class Signature:
  """Function that an export offers, with real inputs to verify it.

  >>> class Digits(tftrain.SupervisedTask):
  ...   def signatures(self, features):
  ...     example = {'image': features}
  ...     return {'top': tftrain.export.Signature(self.top, example)}

  Attributes:
    function: Function of the inputs by name; returns a tensor, or several in a
      dictionary or tuple.
    example: Name -> batch of that input, `[batch, ...]`. On this batch, the
      export must reproduce the outputs of the live model.
    specs: Name -> tf.TensorSpec, for inputs with free dimensions besides the
      batch size.
  """

  function: Callable[..., Any]
  example: Mapping[str, Any]
  specs: Mapping[str, tf.TensorSpec] = dataclasses.field(default_factory=dict)


def of_task(task: task_lib.Task, features: Any) -> dict[str, Signature]:
  """Returns the signatures of a Task: `serve` and `Task.signatures`."""

  def serve(**given: Any) -> Any:
    return task.serve(_restore_structure(features, given))

  return {SERVE: Signature(serve, named('inputs', features)),
          **task.signatures(features)}  # fmt: skip


def of_part(part: Any, features: Any) -> dict[str, Signature]:
  """Returns the signature of one model of a Task."""

  def serve(**given: Any) -> Any:
    return part(_restore_structure(features, given), training=False)

  return {SERVE: Signature(serve, named('inputs', features))}


def of_records(
  task: task_lib.Task, decoder: serving_decoder.Decoder
) -> Signature:
  """Returns the signature of `serve` on serialized tf.train.Examples.

  Records are decoded and mapped like in the pipeline. They may lack features
  that the outputs do not depend on.
  """

  def serve(batch: Any) -> Any:
    return task.serve(task.features(batch))

  with task.calls():
    wanted = _used_leaf_indices(
      lambda mapped: serve(decoder.finish(mapped)), decoder.mapped_spec
    )
    names = _used_leaf_indices(
      lambda example: _leaves_at(decoder.map(example), wanted), decoder.spec
    )

  def serve_records(examples: tf.Tensor) -> Any:
    return serve(decoder.decode(examples, names, wanted))

  return Signature(serve_records, {RECORDS: np.array(decoder.records, object)})


def named(prefix: str, value: Any) -> dict[str, Any]:
  """Returns tensors by name: keys, `prefix`, or `prefix_0`, `prefix_1`, ..."""
  if isinstance(value, dict):
    return value
  leaves = tf.nest.flatten(value)
  if len(leaves) == 1:
    return {prefix: leaves[0]}
  return {f'{prefix}_{index}': leaf for index, leaf in enumerate(leaves)}


def trace(task: task_lib.Task, name: str, signature: Signature) -> Any:
  """Returns the ConcreteFunction of a signature, with a free batch size.

  Raises:
    ExportError: If the function does not take the inputs of its example, cannot
      be traced, needs a fixed batch size, or calls Python.
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
  except Exception:  # of the user's model: only the first error is reported
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


def _restore_structure(like: Any, given: Mapping[str, Any]) -> Any:
  """Returns the tensors of `given` in the structure of `like`."""
  if isinstance(like, dict):
    return dict(given)
  leaves = [given[name] for name in named('inputs', like)]
  return tf.nest.pack_sequence_as(like, leaves)


def _leaves_at(value: Any, indices: Any) -> list[Any]:
  leaves = tf.nest.flatten(value)
  return [leaves[index] for index in indices]


def _used_leaf_indices(function: Callable[[Any], Any], spec: Any) -> list[int]:
  """Returns the indices of the leaves of `spec` that the result depends on."""
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

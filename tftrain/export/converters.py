"""Converters of a SavedModel to TensorFlow Lite, Keras and ONNX."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import importlib
import pathlib
from typing import Any

import keras
import tensorflow as tf

from tftrain import errors
from tftrain.export import signature
from tftrain.platform import files
from tftrain.task import task as task_lib

Outputs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
  """File format of an export, with its converter and its runtime.

  Attributes:
    file: Name of the file, beside saved_model.pb.
    tolerance: Largest difference from the live model, relative to the largest
      output.
    write: Writes the file, given the Task, the directory of the SavedModel and
      the path of the file.
    run: Runs the file, given its path and inputs by name; returns outputs by
      name.
  """

  file: str
  tolerance: float
  write: Callable[[task_lib.Task, pathlib.Path, pathlib.Path], None]
  run: Callable[[pathlib.Path, Mapping[str, Any]], Outputs]


def of_name(name: str) -> Format:
  """Returns the Format called `name`.

  Raises:
    ConfigError: If the format is unknown, or its package is not installed.
  """
  if name not in _FORMATS:
    raise errors.ConfigError(
      f'there is no export format {name!r}; there are {", ".join(_FORMATS)} '
      'beside the SavedModel, which is always there'
    )
  if name == 'onnx':
    _import_onnx()
  return _FORMATS[name]


# TensorFlow Lite.


def _tflite(quantize: str = '') -> Callable[..., None]:
  def write(
    task: task_lib.Task, saved: pathlib.Path, path: pathlib.Path
  ) -> None:
    del task
    converter = tf.lite.TFLiteConverter.from_saved_model(
      str(saved), signature_keys=[signature.SERVE]
    )
    if quantize:
      converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == 'float16':
      converter.target_spec.supported_types = [tf.float16]
    try:
      content = converter.convert()
    except Exception as error:  # MLIR errors have no class of their own
      raise errors.ExportError(
        f'TensorFlow Lite cannot hold this model: {errors.one_line(error)}; '
        'leave the format out, or replace that operation'
      ) from error
    files.write_bytes(path, content)

  return write


def _run_tflite(path: pathlib.Path, given: Mapping[str, Any]) -> Outputs:
  interpreter = tf.lite.Interpreter(model_path=str(path))
  runner = interpreter.get_signature_runner(signature.SERVE)
  return dict(runner(**given))


# Keras.


def _write_keras(
  task: task_lib.Task, saved: pathlib.Path, path: pathlib.Path
) -> None:
  del saved
  plain = type(task).serve is task_lib.Task.serve
  if not plain or not isinstance(task.model, keras.Model):
    raise errors.ConfigError(
      f'export format keras: {type(task).__name__} '
      + ('has a serve() of its own' if not plain else 'has no Keras model')
      + ', which a .keras file cannot hold; leave the format out'
    )
  task.model.save(path)


def _run_keras(path: pathlib.Path, given: Mapping[str, Any]) -> Outputs:
  model = keras.models.load_model(path, compile=False, safe_mode=True)
  leaves = list(given.values())
  fed = leaves[0] if len(leaves) == 1 else leaves
  if set(given) == set(getattr(model, 'input_names', ())):
    fed = dict(given)
  return signature.named('outputs', model(fed, training=False))


# ONNX.


def _import_onnx() -> tuple[Any, Any]:
  try:
    return (
      importlib.import_module('tf2onnx'),
      importlib.import_module('onnxruntime'),
    )
  except ImportError as error:
    raise errors.ConfigError(
      f'export format onnx needs a package that is missing ({error}); '
      "pip install 'tftrain[onnx]'"
    ) from error


def _write_onnx(
  task: task_lib.Task, saved: pathlib.Path, path: pathlib.Path
) -> None:
  del task
  tf2onnx, _ = _import_onnx()
  loaded = tf.saved_model.load(str(saved))  # the reference keeps its variables
  serve = loaded.signatures[signature.SERVE]
  specs = serve.structured_input_signature[1]
  function = tf.function(
    lambda *given: serve(**dict(zip(specs, given, strict=True)))
  )
  try:
    proto, _ = tf2onnx.convert.from_function(
      function, input_signature=list(specs.values())
    )
  except Exception as error:  # tf2onnx has no public base class
    raise errors.ExportError(
      f'ONNX cannot hold this model: {errors.one_line(error)}; leave the '
      'format out, or replace that operation'
    ) from error
  files.write_bytes(path, proto.SerializeToString())


def _run_onnx(path: pathlib.Path, given: Mapping[str, Any]) -> Outputs:
  _, onnxruntime = _import_onnx()
  session = onnxruntime.InferenceSession(
    str(path), providers=['CPUExecutionProvider']
  )
  names = [output.name for output in session.get_outputs()]
  fed = {k: tf.convert_to_tensor(v).numpy() for k, v in given.items()}
  return dict(zip(names, session.run(None, fed), strict=True))


_FORMATS = {
  'tflite': Format('model.tflite', 1e-5, _tflite(), _run_tflite),
  'tflite_float16': Format(
    'model.float16.tflite', 1e-2, _tflite('float16'), _run_tflite
  ),
  'tflite_int8': Format(
    'model.int8.tflite', 5e-2, _tflite('int8'), _run_tflite
  ),
  'keras': Format('model.keras', 1e-6, _write_keras, _run_keras),
  'onnx': Format('model.onnx', 1e-5, _write_onnx, _run_onnx),
}  # fmt: skip

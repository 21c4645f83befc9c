"""Export formats: TensorFlow Lite, Keras and ONNX compute the same."""

import dataclasses
import importlib
import json

import pytest
import tensorflow as tf

from tests.support import exported_models
from tftrain import errors
from tftrain.export import converters
from tftrain.export import saved_model


@pytest.mark.parametrize(
  'name',
  [
    'tflite',
    pytest.param('tflite_float16', marks=pytest.mark.slow),
    pytest.param('tflite_int8', marks=pytest.mark.slow),
    'keras',
  ],
)
def test_other_formats_compute_the_same(name, tmp_path):
  exported_models.exported(
    exported_models.offering(), tmp_path, formats=(name,)
  )
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  found = seen['formats'][name]['outputs']
  assert found['difference'] <= found['tolerance']


def test_formats_that_are_none_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match="no export format 'tflight'"):
    exported_models.exported(
      exported_models.offering(), tmp_path, formats=('tflight',)
    )

  class Own(exported_models.Offering):
    def serve(self, features):
      return tf.nn.softmax(self.model(features))

  with pytest.raises(errors.ConfigError, match=r'a serve\(\) of its own'):
    exported_models.exported(
      exported_models.offering(Own), tmp_path, formats=('keras',)
    )
  assert list(tmp_path.iterdir()) == []


def test_a_format_that_differs_is_refused(tmp_path, monkeypatch):
  one = converters.of_name('tflite')
  wrong = lambda path, given: {
    k: v + 1e-3 for k, v in one.run(path, given).items()
  }
  changed = {'tflite': dataclasses.replace(one, run=wrong)}
  monkeypatch.setattr(converters, '_FORMATS', changed)
  with pytest.raises(errors.ExportError, match='model.tflite of the export'):
    exported_models.exported(
      exported_models.offering(), tmp_path, formats=('tflite',)
    )
  assert list(tmp_path.iterdir()) == []


def test_onnx_says_what_it_needs_or_computes_the_same(tmp_path):
  try:
    importlib.import_module('tf2onnx')
  except ImportError:
    with pytest.raises(errors.ConfigError, match=r"pip install 'tftrain\[onnx"):
      exported_models.exported(
        exported_models.offering(), tmp_path, formats=('onnx',)
      )
    return
  exported_models.exported(
    exported_models.offering(), tmp_path, formats=('onnx',)
  )
  seen = json.loads((tmp_path / '1' / saved_model.COMPARISON).read_text())
  assert seen['formats']['onnx']['outputs']['difference'] <= 1e-5

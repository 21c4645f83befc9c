"""Signatures: several in one export, of any batch size."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import exported_models
from tests.support import small_tasks
import tftrain
from tftrain import errors


def test_a_task_may_offer_several_signatures_of_any_batch_size(tmp_path):
  task = exported_models.offering()
  _, loaded = exported_models.exported(task, tmp_path)
  assert sorted(loaded.signatures) == ['probabilities', 'serving_default']
  for rows in (1, 3):
    x, _ = small_tasks.arrays(rows)
    logits = task.model(x)
    outputs = exported_models.served(loaded, inputs=x)['outputs']
    np.testing.assert_array_equal(outputs, logits)
    found = exported_models.served(loaded, 'probabilities', image=x)[
      'probability'
    ]
    np.testing.assert_allclose(found, tf.nn.softmax(logits), rtol=1e-6)


def _wrong(function, example=None, specs=None):
  class Wrong(exported_models.Offering):
    def signatures(self, features):
      given = example or {'image': features}
      return {'wrong': tftrain.export.Signature(function, given, specs or {})}

  return exported_models.offering(Wrong)


_SPEC = {'imgae': tf.TensorSpec([None, 6])}


@pytest.mark.parametrize(
  'make,text',
  [
    (
      lambda: _wrong(lambda imgae: imgae),
      "names the input 'image', which its function does not take; it takes "
      'imgae',
    ),
    (
      lambda: _wrong(lambda image: image, specs=_SPEC),
      "has a spec for 'imgae' and no example of it; there are image",
    ),
    (
      lambda: _wrong(
        lambda image: (
          tf.concat([image, np.zeros([8, 6], 'float32')], 1)
          + tf.zeros([image.shape[0], 12])
        )
      ),
      'works with a fixed batch size only',
    ),
    (
      lambda: _wrong(
        lambda image: tf.numpy_function(lambda x: x, [image], tf.float32)
      ),
      'calls Python (PyFunc',
    ),
    (
      lambda: _wrong(lambda image: tf.py_function(abs, [image], tf.float32)),
      'which no SavedModel can hold',
    ),
  ],
)
def test_signatures_that_cannot_be_exported_are_refused(make, text, tmp_path):
  with pytest.raises(errors.ExportError) as info:
    exported_models.exported(make(), tmp_path)
  assert text in str(info.value)
  assert str(info.value).startswith("signature 'wrong' of Wrong ")
  assert '\n' not in str(info.value)
  assert list(tmp_path.iterdir()) == []


def test_names_of_signatures_stay_in_their_place(tmp_path):
  class Named(exported_models.Offering):
    def signatures(self, features):
      return {
        '../x': tftrain.export.Signature(
          self.probabilities, {'image': features}
        )
      }

  with pytest.raises(errors.ConfigError, match='cannot name a directory'):
    exported_models.exported(exported_models.offering(Named), tmp_path)

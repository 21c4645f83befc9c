"""Feature specs: parsed as written, and refused by name."""

import pytest
import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import feature_spec


@pytest.mark.parametrize(
  ('text', 'dtype', 'shape'),
  [
    ('uint8[28,28,1]', tf.uint8, (28, 28, 1)),
    ('int64', tf.int64, ()),
    ('int64[?]', tf.int64, (None,)),
    ('float32[?,3]', tf.float32, (None, 3)),
    ('float32[ ? , 3 ]', tf.float32, (None, 3)),
    ('bfloat16[2]', tf.bfloat16, (2,)),
    ('bool', tf.bool, ()),
    ('string', tf.string, ()),
  ],
)
def test_a_spec_is_read_as_it_is_written(text, dtype, shape):
  (feature,) = feature_spec.parse({'x': text}).values()
  assert (feature.dtype, feature.shape) == (dtype, shape)
  assert str(feature) == text.replace(' ', '')


@pytest.mark.parametrize(
  'text',
  [
    'int',
    'complex64',
    'int64(3)',
    'int64[3',
    'int64[3?]',
    'int64[a]',
    'int64[3,?]',
    'int64[0]',
    'int64[-1]',
    'int64[2,,3]',
    'int64[2 3]',
    'uint8[?]',
    '',
    'int64[?',
    3,
    None,
    tf.int64,
  ],
)
def test_a_bad_spec_is_refused_with_its_name(text):
  with pytest.raises(errors.ConfigError) as info:
    feature_spec.parse({'height': text})
  assert f"features['height'] = {text!r}; " in str(info.value)
  assert '\n' not in str(info.value)


@pytest.mark.parametrize('features', [{}, None, 'int64', ['int64']])
def test_features_that_are_no_mapping_are_refused(features):
  with pytest.raises(errors.ConfigError, match=r'^features = .*\{name: spec\}'):
    feature_spec.parse(features)

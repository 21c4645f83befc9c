"""What an error line says of a mistake that has other lines around it."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
from tests import errors_test
import tftrain
from tftrain import errors

refused = errors_test.refused
trainer = errors_test.trainer


class Wrong(keras.layers.Layer):
  """Runs `function` in its call."""

  def __init__(self, function):
    super().__init__()
    self._function = function

  def call(self, x):
    return self._function(x)


class Around(keras.layers.Layer):
  def __init__(self, inner):
    super().__init__()
    self.inner = inner

  def call(self, x):
    return self.inner(x)


def fail(error):
  raise error


def reshaped(x):
  return tf.reshape(x, [3, 3, 3])


def line_of(function):
  with pytest.raises(Exception) as info:
    function(tf.ones([8, 6]))
  return errors.one_line(info.value)


@pytest.mark.parametrize('graph', [False, True])
@pytest.mark.parametrize('around', [False, True])
def test_an_error_in_a_layer_names_the_layer_and_the_cause(graph, around):
  def line(function):
    layer = Around(Wrong(function)) if around else Wrong(function)
    return line_of(tf.function(layer) if graph else layer)

  assert line(reshaped).startswith(
    'Wrong.call(): Cannot reshape a tensor with 48 elements'
    if graph
    else 'Wrong.call(): Input to reshape is a tensor with 48 values'
  )
  cause = lambda error: line(lambda x: fail(error))
  assert cause(ValueError('not\nthat')) == 'Wrong.call(): not'
  assert cause(RuntimeError('a cause')) == 'Wrong.call(): a cause'
  assert cause(KeyError('missing')) == 'Wrong.call(): missing'
  assert cause(ValueError('')).startswith('Wrong.call(): ')
  for error in (reshaped, lambda x: fail(ValueError('it'))):
    for dressing in ('Exception encountered', 'Arguments', '\x1b', 'File'):
      assert dressing not in line(error)


def test_an_error_while_a_layer_runs_in_a_graph_is_the_telling_line():
  @tf.function
  def inner(x):
    tf.debugging.assert_less(x, 0.5, message='too large')
    return x

  line = line_of(Wrong(inner))
  assert line.startswith('Wrong.call(): ')
  assert 'too large' in line
  assert 'Graph execution' not in line


def test_an_error_in_a_graph_outside_a_layer_is_the_telling_line():
  def nested(x):
    return tf.function(lambda x: fail(ValueError('the cause')))(x)

  assert line_of(tf.function(nested)) == 'ValueError: the cause'
  assert errors.one_line(ValueError('first\nsecond')) == 'first'
  assert errors.one_line(ValueError()) == 'ValueError'
  assert errors.one_line(KeyError('name')) == "'name'"
  assert len(errors.one_line(ValueError('x' * 999))) == 300


@pytest.mark.parametrize(
  ('make_model', 'cause'),
  [
    (lambda: Wrong(reshaped), 'Input to reshape is a tensor with 48'),
    # Keras runs it in a graph first, and says that at length.
    (lambda: keras.Sequential([Wrong(reshaped)]), 'Cannot reshape a tensor'),
  ],
)
def test_a_wrong_reshape_in_a_model_is_told_before_step_1(make_model, cause):
  make = lambda: tftrain.SupervisedTask(
    make_model(), keras.losses.MeanSquaredError(), keras.optimizers.SGD()
  )
  with refused(errors.InputError, f'int64[8]: Wrong.call(): {cause}'):
    trainer(tftrain.Arrays(cases.arrays(), 8), make)


@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
@pytest.mark.parametrize('compute', ['one_device', 'mirrored'])
def test_masks_are_refused_in_mixed_precision_too(policy, compute):
  def make():
    embedding = keras.layers.Embedding(9, 3, mask_zero=True, dtype=policy)
    model = keras.Sequential(
      [
        keras.Input((4,), dtype='int32'),
        embedding,
        keras.layers.Dense(5, dtype=policy),
      ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD())

  tokens = np.ones((8, 4), 'int32')
  with refused(errors.TaskError, 'masks', 'weight 0'):
    trainer([(tokens, tokens)], make, compute)


def sparse_categorical_of_a_part(labels, outputs):
  return keras.losses.sparse_categorical_crossentropy(
    labels, outputs['logits'], from_logits=True
  )


def test_labels_of_a_model_of_several_outputs_are_left_to_the_loss():
  def make():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4)(inputs)
    outputs = {'logits': keras.layers.Dense(3)(hidden), 'hidden': hidden}
    return tftrain.SupervisedTask(
      keras.Model(inputs, outputs),
      sparse_categorical_of_a_part,
      keras.optimizers.SGD(0.1),
    )

  run = trainer(tftrain.Arrays(cases.arrays(), 8), make)
  assert run.train(2).scalars['loss'] > 0


@dataclasses.dataclass
class Scaled:
  """A loss that cannot be hashed, for it can be compared."""

  scale: float

  def __call__(self, labels, logits):
    values = keras.losses.sparse_categorical_crossentropy(
      labels, logits, from_logits=True
    )
    if tf.reduce_mean(values) > 1e6:  # needs AutoGraph
      values = tf.zeros_like(values)
    return values * self.scale


def scaled(labels, logits, scale):
  return Scaled(scale)(labels, logits)


@pytest.mark.parametrize(
  'loss',
  [
    Scaled(1.0),
    functools.partial(scaled, scale=1.0),
    functools.partial(Scaled(1.0)),
    functools.partial(
      keras.losses.sparse_categorical_crossentropy, from_logits=True
    ),
  ],
  ids=['unhashable', 'partial', 'partial_unhashable', 'partial_keras'],
)
def test_losses_that_are_no_plain_functions_train(loss):
  def make(loss):
    keras.utils.set_random_seed(0)
    return tftrain.SupervisedTask(
      cases.model(), loss, keras.optimizers.SGD(0.1)
    )

  data = lambda: tftrain.Arrays(cases.arrays(), 8)
  expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  found, right = (
    trainer(data(), lambda one=one: make(one)).train(3).scalars['loss']
    for one in (loss, expected)
  )
  assert found == pytest.approx(right, rel=1e-6)


def evaluator(shown):
  class Shows(tftrain.SupervisedTask):
    def artifacts(self, batch):
      return shown

  loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  return tftrain.Evaluator(
    Shows(cases.model(), loss, keras.optimizers.SGD()),
    tftrain.Arrays(cases.arrays(), 8, training=False),
  )


@pytest.mark.parametrize(
  ('shown', 'said'),
  [
    (None, 'returned None; return {name: images or str}, or {}'),
    ([np.zeros((1, 2, 2, 1))], 'returned a list; return {name'),
    ({'a': 3}, "'a' of type int; give images"),
    ({'a': None}, "'a' of type NoneType; give images"),
    ({'a': [np.zeros((2, 2, 1))]}, "'a' of type list; give images"),
    ({'a': np.zeros((2, 2, 1))}, "'a' of shape (2, 2, 1); give images"),
    ({3: 'text'}, 'the name 3; give a str'),
  ],
)
def test_artifacts_that_are_none_are_named(shown, said):
  with refused(errors.TaskError, 'artifacts() of Shows', said):
    evaluator(shown)


def test_artifacts_may_be_arrays_tensors_and_texts():
  array = np.zeros((1, 2, 2, 1))
  shown = {'array': array, 'tensor': tf.constant(array), 'text': 'a text'}
  for artifacts in (shown, {}):
    assert evaluator(artifacts).evaluate()['loss'] > 0


@pytest.mark.parametrize(
  ('name', 'value', 'advice'),
  [
    ('freeze', 3, "= 3; give a pattern such as 'dense/kernel', or None"),
    ('no_decay', b'bias', "= b'bias'; give a pattern"),
    ('remat', ['a'], "= ['a']; give a pattern"),
    ('rates', {3: 1.0}, '= {3: 1.0}; give {pattern: factor}'),
    ('rates', {None: 1.0}, '= {None: 1.0}; give {pattern: factor}'),
    ('rates', ['a'], "= ['a']; give {pattern: factor}"),
    ('rates', {'a': '2'}, "the factor of 'a' must be above 0"),
    ('freeze', '', "= ''; an empty pattern matches everything; leave it out"),
    ('no_decay', '', 'an empty pattern'),
    ('remat', '', 'an empty pattern'),
    ('rates', {'': 0.1}, "= {'': 0.1}; an empty pattern"),
    ('freeze', '(', "'(' is no regular expression"),
    ('jit', 'yes', "= 'yes'; give True or False"),
    ('jit', None, '= None; give True or False'),
    ('sync_batch_norm', 1, '= 1; give True or False'),
    ('accumulate', True, '= True; give a whole number'),
    ('accumulate', 2.0, '= 2.0; give a whole number'),
  ],
)
def test_options_of_the_wrong_type_are_named(name, value, advice):
  with refused(errors.ConfigError, f'Update.{name}', advice):
    tftrain.Update(**{name: value})


def test_options_of_the_right_type_are_taken():
  update = tftrain.Update(
    accumulate=2, freeze='a', rates={'b': 2}, remat='.', jit=True
  )
  assert update.patterns() == [('freeze', 'a'), ('remat', '.'), ('rates', 'b')]

"""Error messages: one telling line out of TensorFlow's many."""

import keras
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors


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
  with error_lines.refused(
    errors.InputError, f'int64[8]: Wrong.call(): {cause}'
  ):
    small_tasks.trainer(tftrain.Arrays(small_tasks.arrays(), 8), make)

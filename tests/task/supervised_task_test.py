"""SupervisedTask: labels, masks, losses and precisions."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import error_lines
from tests.support import small_tasks
import tftrain
from tftrain import errors


def test_labels_out_of_range():
  x, y = small_tasks.arrays()
  y[-1] = 3  # not in the first batch
  with error_lines.refused(
    errors.InputError, 'labels range from 0 to 3', '3 outputs'
  ):
    small_tasks.trainer(tftrain.Arrays((x, y), 8))
  with error_lines.refused(errors.InputError, 'Received a label value of 3'):
    small_tasks.trainer([(x[-8:], y[-8:])])


def test_a_bad_label_deep_in_a_stream_names_its_step():
  x, y = small_tasks.arrays()
  bad = y.copy()
  bad[:] = 7
  run = small_tasks.trainer([(x, y), (x, y), (x, bad)])
  with error_lines.refused(errors.InputError, 'step 3', 'label value of 7'):
    run.train(10)


def test_models_in_double_precision_and_lists_of_lists_train():
  def make():
    layers = [keras.Input((6,)), keras.layers.Dense(3, dtype='float64')]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(
      keras.Sequential(layers), loss, keras.optimizers.SGD(0.1)
    )

  x, y = small_tasks.arrays(8)
  run = small_tasks.trainer([[x, y]], make)
  assert run.train(3).scalars['loss'] > 0


@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
@pytest.mark.parametrize('compute', ['one_device', 'mirrored'])
def test_masks_count_in_mixed_precision_too(policy, compute):
  """The cast to float32 drops the mask of Keras."""

  def make():
    keras.utils.set_random_seed(1)
    embedding = keras.layers.Embedding(9, 3, mask_zero=True, dtype=policy)
    model = keras.Sequential(
      [
        keras.Input((4,), dtype='int32'),
        embedding,
        keras.layers.Dense(5, dtype=policy),
      ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tftrain.SupervisedTask(model, loss, keras.optimizers.SGD(0.1))

  tokens = (np.arange(32).reshape(8, 4) % 4).astype('int32')
  tokens[0] = 0
  run = small_tasks.trainer([(tokens, tokens)], make, compute)
  model = make().model
  each = keras.losses.sparse_categorical_crossentropy(
    tokens, tf.cast(model(tokens), tf.float32), from_logits=True
  )
  expected = each.numpy()[tokens != 0].mean()
  found = run.train(1).scalars['loss']
  np.testing.assert_allclose(found, expected, rtol=1e-3)


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

  run = small_tasks.trainer(tftrain.Arrays(small_tasks.arrays(), 8), make)
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
      small_tasks.model(), loss, keras.optimizers.SGD(0.1)
    )

  data = lambda: tftrain.Arrays(small_tasks.arrays(), 8)
  expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  found, right = (
    small_tasks.trainer(data(), lambda one=one: make(one))
    .train(3)
    .scalars['loss']
    for one in (loss, expected)
  )
  assert found == pytest.approx(right, rel=1e-6)

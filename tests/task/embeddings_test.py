"""Adam and embeddings: all rows move, where Keras leaves some alone."""

import keras
import numpy as np

import tftrain

_RATE = 0.1


def make_model():
  keras.utils.set_random_seed(0)
  return keras.Sequential(
    [keras.Input((1,), dtype='int32'), keras.layers.Embedding(3, 2)]
  )


def arrays():
  """Two batches of one row: the first looks up row 0, the second row 1."""
  return np.array([[0], [1]], 'int32'), np.ones([2, 1, 2], 'float32')


def table(model):
  return model.get_weights()[0]


def adam(gradients, weights):
  """The weights after dense Adam steps, in float64."""
  weights = weights.astype(np.float64)
  first = second = np.zeros_like(weights)
  for step, gradient in enumerate(gradients, 1):
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    rate = _RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    weights = weights - rate * first / (np.sqrt(second) + 1e-7)
  return weights


def test_adam_moves_rows_that_a_batch_does_not_look_up():
  x, y = arrays()
  begin = table(make_model())
  model = make_model()
  task = tftrain.SupervisedTask(model, 'mse', keras.optimizers.Adam(_RATE))
  data = tftrain.Arrays((x, y), 1, training=False)
  tftrain.Trainer(task, data).train(2)

  gradients = np.zeros([2, 3, 2])
  for step in range(2):  # each row is looked up before anything moved it
    gradients[step, step] = begin[step] - 1.0
  np.testing.assert_allclose(table(model), adam(gradients, begin), atol=1e-5)

  fitted = make_model()
  fitted.compile(keras.optimizers.Adam(_RATE), 'mse')
  fitted.fit(x, y, batch_size=1, epochs=1, shuffle=False, verbose=0)
  once = adam(gradients[:1], begin)
  np.testing.assert_allclose(table(fitted)[0], once[0], atol=1e-5)
  assert abs(table(model)[0] - once[0]).max() > 0.01

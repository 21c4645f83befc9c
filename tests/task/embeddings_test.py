"""Adam and embeddings: a row that a batch looks up several times."""

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
  """Batches of two rows; the first looks row 0 up twice."""
  y = np.array([1, 3, 1, 1], 'float32')[:, np.newaxis, np.newaxis]
  return np.array([[0], [0], [0], [1]], 'int32'), np.tile(y, [1, 1, 2])


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


def test_adam_squares_the_gradient_of_a_row_that_is_looked_up_twice():
  x, y = arrays()
  begin = table(make_model())
  model = make_model()
  task = tftrain.SupervisedTask(model, 'mse', keras.optimizers.Adam(_RATE))
  data = tftrain.Arrays((x, y), 2, training=False)
  trainer = tftrain.Trainer(task, data)
  trainer.train(1)
  first = np.zeros([3, 2])
  first[0] = (begin[0] - 1) / 2 + (begin[0] - 3) / 2  # the mean over rows
  after = adam([first], begin)
  np.testing.assert_allclose(table(model), after, atol=1e-5)
  trainer.train(2)
  second = np.zeros([3, 2])
  second[0], second[1] = (after[0] - 1) / 2, (after[1] - 1) / 2
  expected = adam([first, second], begin)
  np.testing.assert_allclose(table(model), expected, atol=1e-5)

  fitted = make_model()
  fitted.compile(keras.optimizers.Adam(_RATE), 'mse')
  fitted.fit(x, y, batch_size=2, epochs=1, shuffle=False, verbose=0)
  np.testing.assert_allclose(table(fitted)[1:], expected[1:], atol=1e-5)
  assert abs(table(fitted)[0] - expected[0]).max() > 0.01

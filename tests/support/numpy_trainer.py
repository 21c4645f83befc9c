"""A trainer in float64 NumPy, with gradients by hand.

A network of two dense layers with relu between them. Nothing of TensorFlow, of
Keras or of the library is used here. It knows no replicas, no micro-batches and
no compiled loops: those must not change anything.
"""

from collections.abc import Mapping
import dataclasses
import re

import numpy as np

# In the order of the network: kernel [in, hidden], bias [hidden], kernel
# [hidden, out], bias [out].
NAMES = (
  'model/sequential/dense/kernel',
  'model/sequential/dense/bias',
  'model/sequential/dense_1/kernel',
  'model/sequential/dense_1/bias',
)


@dataclasses.dataclass(frozen=True)
class SGD:
  """As Keras has it: the learning rate is inside of the momentum."""

  learning_rate: float
  momentum: float = 0.0
  nesterov: bool = False
  weight_decay: float = 0.0

  @property
  def slots(self):
    return ('momentum',) if self.momentum else ()

  def change(self, gradient, slots, rate, count):
    """What to add to a variable; replaces its slots."""
    del count
    if not self.momentum:
      return -rate * gradient
    velocity = self.momentum * slots['momentum'] - rate * gradient
    slots['momentum'] = velocity
    if not self.nesterov:
      return velocity
    return self.momentum * velocity - rate * gradient


@dataclasses.dataclass(frozen=True)
class AdamW:
  """As Keras has it: epsilon stands beside the uncorrected root."""

  learning_rate: float
  weight_decay: float = 0.004
  beta_1: float = 0.9
  beta_2: float = 0.999
  epsilon: float = 1e-7

  slots = ('momentum', 'velocity')

  def change(self, gradient, slots, rate, count):
    """What to add to a variable; replaces its slots."""
    m, v = slots['momentum'], slots['velocity']
    m = self.beta_1 * m + (1 - self.beta_1) * gradient
    v = self.beta_2 * v + (1 - self.beta_2) * gradient**2
    slots['momentum'], slots['velocity'] = m, v
    rate *= np.sqrt(1 - self.beta_2**count) / (1 - self.beta_1**count)
    return -rate * m / (np.sqrt(v) + self.epsilon)


@dataclasses.dataclass(frozen=True)
class Options:
  """What may stand between a gradient and new weights."""

  clip_norm: float | None = None
  clip_value: float | None = None
  clip_adaptive: float | None = None
  freeze: str | None = None
  rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
  no_decay: str | None = None
  ema: float | None = None


class Oracle:
  """Trains the network.

  Attributes after a step:
    weights, averages: Name -> array; averages are the EMA.
    slots: Slot -> name -> array, of what is trained.
    loss: The mean loss of the batch, with regularization.
    weight: The sum of the weights of its examples.
    gradient_norm: Global norm of the mean gradient, before clipping.
    update_ratio: Norm of the change over the norm of the weights before it,
      both of what is trained.
    clipped: How many entries of the gradient clipping changed, in all steps.
  """

  def __init__(
    self, weights, optimizer, options=None, *, squared=False, l2=0.0
  ):
    """`l2` is the factor of the first kernel's squares, added to the loss."""
    options = options or Options()
    self.weights = {name: np.array(weights[name], 'float64') for name in NAMES}
    self.averages = dict(self.weights)
    self._optimizer = optimizer
    self.options = options
    self._squared = squared
    self._l2 = l2
    self.trained = tuple(
      name for name in NAMES if not _found(options.freeze, name)
    )
    self.slots = {
      slot: {name: np.zeros_like(self.weights[name]) for name in self.trained}
      for slot in optimizer.slots
    }
    self.count = self.clipped = 0

  def step(self, batch):
    """Trains on `(x, y)` or `(x, y, weights)`."""
    self.loss, self.weight, gradients = self._backward(self.weights, batch)
    gradients = {name: gradients[name] for name in self.trained}
    self.gradient_norm = _norm(gradients)
    clipped = self._clip(gradients)
    self.clipped += sum(
      (clipped[name] != gradients[name]).sum() for name in gradients
    )
    self.count += 1
    before = dict(self.weights)
    for name in self.trained:
      self._move(name, clipped[name])
    changes = {n: self.weights[n] - before[n] for n in self.trained}
    self.update_ratio = _norm(changes) / _norm(
      {name: before[name] for name in self.trained}
    )
    if self.options.ema is not None:
      d = self.options.ema
      for name in self.trained:
        self.averages[name] = (
          d * self.averages[name] + (1 - d) * self.weights[name]
        )

  def _move(self, name, gradient):
    optimizer, options = self._optimizer, self.options
    rate = optimizer.learning_rate
    for pattern, factor in options.rates.items():
      if re.search(pattern, name):
        rate *= factor
        break
    weight = self.weights[name]
    if not _found(options.no_decay, name):
      weight = weight - weight * optimizer.weight_decay * rate
    slots = {slot: values[name] for slot, values in self.slots.items()}
    weight = weight + optimizer.change(gradient, slots, rate, self.count)
    for slot, value in slots.items():
      self.slots[slot][name] = value
    self.weights[name] = weight

  def _clip(self, gradients):
    options = self.options
    if options.clip_value is not None:
      limit = options.clip_value
      gradients = {n: np.clip(g, -limit, limit) for n, g in gradients.items()}
    if options.clip_adaptive is not None:
      gradients = {
        name: _adaptive(g, self.weights[name], options.clip_adaptive)
        for name, g in gradients.items()
      }
    if options.clip_norm is not None:
      factor = min(1.0, options.clip_norm / _norm(gradients))
      gradients = {name: factor * g for name, g in gradients.items()}
    return gradients

  def mean_loss(self, batch, weights):
    """The mean loss of a batch at weights of one's own."""
    return self._backward(weights, batch)[0]

  def _backward(self, variables, batch):
    """Returns (mean loss, sum of example weights, name -> mean gradient)."""
    x, y, weights = (
      batch if len(batch) == 3 else (*batch, np.ones(len(batch[0])))
    )
    x, weights = np.asarray(x, 'float64'), np.asarray(weights, 'float64')
    kernel, bias, kernel_1, bias_1 = (variables[name] for name in NAMES)
    before = x @ kernel + bias  # [batch, hidden]
    hidden = np.maximum(before, 0.0)
    outputs = hidden @ kernel_1 + bias_1  # [batch, out]
    values, d_outputs = (_squares if self._squared else _entropies)(outputs, y)
    total = weights.sum()
    d_outputs = d_outputs * weights[:, None] / total
    d_before = (d_outputs @ kernel_1.T) * (before > 0)
    loss = (values * weights).sum() / total + self._l2 * (kernel**2).sum()
    gradients = (
      x.T @ d_before + 2 * self._l2 * kernel,
      d_before.sum(0),
      hidden.T @ d_outputs,
      d_outputs.sum(0),
    )
    return loss, total, dict(zip(NAMES, gradients, strict=True))


def _entropies(logits, labels):
  """Cross-entropy of softmax, [batch], and its derivative by the logits."""
  shifted = logits - logits.max(1, keepdims=True)
  exponentials = np.exp(shifted)
  sums = exponentials.sum(1, keepdims=True)
  rows = np.arange(len(labels))
  values = np.log(sums[:, 0]) - shifted[rows, labels]
  derivative = exponentials / sums
  derivative[rows, labels] -= 1.0
  return values, derivative


def _squares(outputs, targets):
  """Squared error of the first output, [batch], and its derivative."""
  error = outputs[:, 0] - np.asarray(targets, 'float64')
  derivative = np.zeros_like(outputs)
  derivative[:, 0] = 2 * error
  return error**2, derivative


def _adaptive(gradient, weight, clip):
  """Clips the gradient of a unit to `clip` times the norm of its weights."""
  norm = _unit_norm(gradient)
  limit = clip * np.maximum(_unit_norm(weight), 1e-3)
  return np.where(
    norm > limit, gradient * limit / np.maximum(norm, 1e-30), gradient
  )


def _unit_norm(value):
  """Over the inputs of a unit, [1, out], or of a whole bias."""
  if value.ndim <= 1:
    return np.sqrt((value**2).sum())
  return np.sqrt((value**2).sum(0, keepdims=True))


def _norm(values):
  return np.sqrt(sum((value**2).sum() for value in values.values()))


def _found(pattern, name):
  return pattern is not None and re.search(pattern, name) is not None

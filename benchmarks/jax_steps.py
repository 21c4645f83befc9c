"""JAX for benchmarks/steps.py: a process that trains when it is asked to.

  python benchmarks/jax_steps.py mlp start.npz

The file holds the data, the batch size and the weights to start from, as
benchmarks/step_contestants.py saves them. The process writes its versions as a
line of JSON; if it cannot train, it writes why and ends. Then it reads a number
of steps from each line of its input, trains that many, and writes the seconds
and the means of the last 100 steps as JSON. It ends with its input.
"""

from collections.abc import Callable
import functools
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import shuffled_rows

try:
  import jax
  from jax import lax
  from jax import nn
  import jax.numpy as jnp
  import optax
except ImportError:
  jax = None

# As in benchmarks/step_contestants.py, which this process does not import.
BLOCK = 100

HINT = 'JAX is not installed; to include it: pip install jax optax'

Arrays = list[Any]
Forward = Callable[[Arrays, Arrays, Any], tuple[Any, Arrays]]
"""`forward(weights, moving, images)` -> (logits, new moving statistics).

Weights are in the order of the Keras model.
"""


# Models.


def dense(weights: Arrays, x: Any) -> Any:
  kernel, bias = weights
  return x @ kernel + bias


def mlp(weights: Arrays, moving: Arrays, x: Any) -> tuple[Any, Arrays]:
  for first in range(0, len(weights) - 2, 2):
    x = nn.relu(dense(weights[first : first + 2], x))
  return dense(weights[-2:], x), moving


def batchnorm(weights: Arrays, moving: Arrays, x: Any) -> tuple[Any, Arrays]:
  gamma, beta = weights[2:4]
  x = dense(weights[:2], x)
  statistics = x.mean(0), x.var(0)
  mean, variance = statistics
  x = (x - mean) * lax.rsqrt(variance + 1e-3) * gamma + beta
  moving = [
    0.99 * old + 0.01 * new for old, new in zip(moving, statistics, strict=True)
  ]
  return dense(weights[-2:], nn.relu(x)), moving


def convnet(weights: Arrays, moving: Arrays, x: Any) -> tuple[Any, Arrays]:
  for first in (0, 2):
    kernel, bias = weights[first : first + 2]
    x = lax.conv_general_dilated(
      x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = nn.relu(x + bias)
  return dense(weights[-2:], x.reshape(len(x), -1)), moving


def lstm(weights: Arrays, moving: Arrays, x: Any) -> tuple[Any, Arrays]:
  kernel, recurrent, bias = weights[:3]

  def cell(carry: Any, x: Any) -> Any:
    h, c = carry
    gates = x @ kernel + h @ recurrent + bias
    write, keep, value, read = jnp.split(gates, 4, axis=-1)
    c = nn.sigmoid(keep) * c + nn.sigmoid(write) * jnp.tanh(value)
    return (nn.sigmoid(read) * jnp.tanh(c), c), None

  zeros = jnp.zeros((len(x), len(recurrent)))
  (h, _), _ = lax.scan(cell, (zeros, zeros), x.swapaxes(0, 1))
  return dense(weights[-2:], h), moving


def gru(weights: Arrays, moving: Arrays, x: Any) -> tuple[Any, Arrays]:
  kernel, recurrent, bias = weights[:3]

  def cell(h: Any, x: Any) -> Any:
    of_x = jnp.split(x @ kernel + bias[0], 3, axis=-1)
    of_h = jnp.split(h @ recurrent + bias[1], 3, axis=-1)
    keep, reset = (nn.sigmoid(of_x[i] + of_h[i]) for i in (0, 1))
    value = jnp.tanh(of_x[2] + reset * of_h[2])
    return keep * h + (1 - keep) * value, None

  zeros = jnp.zeros((len(x), len(recurrent)))
  h, _ = lax.scan(cell, zeros, x.swapaxes(0, 1))
  return dense(weights[-2:], h), moving


def transformer(weights: Arrays, moving: Arrays, x: Any) -> tuple[Any, Arrays]:
  x = dense(weights[:2], x)
  blocks = weights[2:-2]
  half = len(blocks) // 2
  for block in (blocks[:half], blocks[half:]):
    x = x + attention(block[2:10], layer_norm(block[:2], x))
    hidden = nn.relu(dense(block[12:14], layer_norm(block[10:12], x)))
    x = x + dense(block[14:16], hidden)
  return dense(weights[-2:], x.mean(1)), moving


def layer_norm(weights: Arrays, x: Any) -> Any:
  gamma, beta = weights
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) * lax.rsqrt(variance + 1e-3) * gamma + beta


def attention(weights: Arrays, x: Any) -> Any:
  """Returns multi-head self-attention; kernels are `[width, heads, size]`."""
  query, key, value = (
    jnp.einsum('btd,dhs->bths', x, weights[i]) + weights[i + 1]
    for i in (0, 2, 4)
  )
  scores = jnp.einsum('bths,buhs->bhtu', query, key)
  shares = nn.softmax(scores / np.sqrt(query.shape[-1]).astype('float32'))
  heads = jnp.einsum('bhtu,buhs->bths', shares, value)
  return jnp.einsum('bths,hsd->btd', heads, weights[6]) + weights[7]


MODELS: dict[str, Forward] = {
  'mlp': mlp,
  'deep': mlp,
  'batchnorm': batchnorm,
  'convnet': convnet,
  'lstm': lstm,
  'gru': gru,
  'transformer': transformer,
  'transformer_wide': transformer,
}


# Training.


def make_block(forward: Forward, optimizer: Any) -> Any:
  """Returns the compiled block of steps, one for each row of `rows`."""

  def loss_of(
    weights: Arrays, moving: Arrays, images: Any, labels: Any
  ) -> tuple[Any, Any]:
    logits, moving = forward(weights, moving, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    hits = jnp.argmax(logits, -1) == labels
    return losses.mean(), (moving, hits.mean())

  @functools.partial(jax.jit, donate_argnums=0)
  def block(state: Any, images: Any, labels: Any, rows: Any) -> Any:
    def step(state: Any, rows: Any) -> Any:
      weights, moving, slots = state
      (loss, (moving, accuracy)), gradients = jax.value_and_grad(
        loss_of, has_aux=True
      )(weights, moving, images[rows], labels[rows])
      updates, slots = optimizer.update(gradients, slots, weights)
      weights = optax.apply_updates(weights, updates)
      return (weights, moving, slots), (loss, accuracy)

    state, means = lax.scan(step, state, rows)
    return state, jax.tree.map(jnp.mean, means)

  return block


def serve(model: str, path: str) -> None:
  """Trains as many steps as each line of the input says."""
  with np.load(path) as saved:
    start = {name: saved[name] for name in saved.files}
  images, labels = jnp.asarray(start['images']), jnp.asarray(start['labels'])
  weights, moving = (
    [
      jnp.asarray(start[f'{kind}_{i}'])
      for i in range(sum(name.startswith(f'{kind}_') for name in start))
    ]
    for kind in ('weight', 'moving')
  )
  optimizer = optax.adam(1e-3, eps=1e-7)  # as Keras's
  block = make_block(MODELS[model], optimizer)
  rows = shuffled_rows.blocks(len(labels), int(start['batch_size']), BLOCK)
  state = weights, moving, optimizer.init(weights)
  for line in sys.stdin:
    begun = time.perf_counter()
    for _ in range(int(line) // BLOCK):
      state, means = block(state, images, labels, next(rows))
      loss, accuracy = map(float, means)
    seconds = time.perf_counter() - begun
    answer({'seconds': seconds, 'loss': loss, 'accuracy': accuracy})


def answer(values: dict[str, Any]) -> None:
  print(json.dumps(values), flush=True)


def main(model: str, path: str) -> None:
  if jax is None:
    answer({'left_out': HINT})
  elif model not in MODELS:
    answer({'left_out': 'this model is not written in JAX'})
  else:
    answer({'jax': jax.__version__, 'optax': optax.__version__})
    serve(model, path)


if __name__ == '__main__':
  main(*sys.argv[1:])

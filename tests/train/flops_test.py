"""FLOPs of a compiled step: against formulas, and the peak of a device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tftrain
from tftrain.train import flops


def trained(model, x, y=None, loss='mse', **options):
  """FLOPs of a step, as tftrain counts them."""
  losses = {
    'mse': keras.losses.MeanSquaredError(),
    'labels': keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  }
  task = tftrain.SupervisedTask(model, losses[loss], keras.optimizers.SGD(0.1))
  y = np.zeros([len(x), *model.output_shape[1:]], 'float32') if y is None else y
  trainer = tftrain.Trainer(
    task, tftrain.Arrays((x, y), 8), log_every=1, **options
  )
  report = trainer.train(1)
  assert report is not None
  return trainer, report


def rows(*shape):
  return np.ones([16, *shape], 'float32')


def test_a_dense_network_costs_what_the_formula_says():
  """6 per weight and example, less 2 where no gradient goes to the input."""
  layers = [keras.Input((10,)), keras.layers.Dense(20), keras.layers.Dense(30)]
  trainer, report = trained(keras.Sequential(layers), rows(10))
  per_example = 4 * 10 * 20 + 6 * 20 * 30
  assert trainer.flops_per_example == per_example
  rate = report.timing['steps_per_second'] * 8 * per_example / 1e12
  assert report.timing['teraflops_per_second'] == pytest.approx(rate)


@pytest.mark.parametrize(
  ('layer', 'kernel'),
  [
    (keras.layers.Conv2D(7, 3, padding='same'), 3 * 3 * 5 * 7),
    (keras.layers.Conv2D(6, 3, padding='same', groups=1), 3 * 3 * 5 * 6),
    (keras.layers.DepthwiseConv2D(3, padding='same'), 3 * 3 * 5),
  ],
)
def test_a_convolution_costs_its_kernel_at_each_place(layer, kernel):
  model = keras.Sequential([keras.Input((9, 8, 5)), layer])
  trainer, _ = trained(model, rows(9, 8, 5))
  assert trainer.flops_per_example == 4 * kernel * 9 * 8


def test_a_deeper_convolution_has_a_gradient_to_its_input():
  convolution = keras.layers.Conv2D(5, 3, padding='same')
  model = keras.Sequential(
    [keras.Input((9, 8, 5)), convolution, keras.layers.Conv2D(5, 3)]
  )
  trainer, _ = trained(model, rows(9, 8, 5))
  first, second = 4 * 9 * 5 * 5 * 9 * 8, 6 * 9 * 5 * 5 * 7 * 6
  assert trainer.flops_per_example == first + second


def test_attention_costs_its_projections_and_products():
  inputs = keras.Input((6, 8))
  attention = keras.layers.MultiHeadAttention(2, 4, flash_attention=False)
  model = keras.Model(inputs, attention(inputs, inputs))
  trainer, _ = trained(model, rows(6, 8))
  projections = 4 * 6 * 8 * 8 * 3 + 6 * 6 * 8 * 8  # q, k and v see the input
  products = 2 * 6 * 6 * 6 * 8
  assert trainer.flops_per_example == projections + products


def test_a_recurrent_layer_costs_each_of_its_steps():
  model = keras.Sequential([keras.Input((5, 3)), keras.layers.SimpleRNN(4)])
  trainer, _ = trained(model, rows(5, 3))
  assert trainer.flops_per_example == pytest.approx(
    5 * (4 * 3 * 4 + 6 * 4 * 4), rel=1e-6
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [
    {'update': tftrain.Update(accumulate=4)},
    {'update': tftrain.Update(jit='step')},
    {'strategy': 'mirrored'},
  ],
  ids=['accumulate', 'jit', 'mirrored'],
)
def test_however_it_is_computed_an_example_costs_the_same(options):
  name = options.pop('strategy', None)
  strategy = tftrain.make_strategy(name or 'one_device')
  with strategy.scope():
    layers = [keras.Input((10,)), keras.layers.Dense(20), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    trainer, report = trained(model, rows(10), strategy=strategy, **options)
  assert trainer.flops_per_example == 4 * 10 * 20 + 6 * 20 * 3
  per_replica = report.timing.get('examples_per_second_per_replica')
  if name:
    whole = report.timing['examples_per_second']
    assert per_replica == pytest.approx(whole / 2)
  else:
    assert per_replica is None


def test_tensorflow_counts_the_same():
  """An oracle of its own for the forward pass of several layers."""
  layers = [
    keras.Input((12, 12, 3)),
    keras.layers.Conv2D(4, 3, use_bias=False),
    keras.layers.Flatten(),
    keras.layers.Dense(5, use_bias=False),
  ]
  model = keras.Sequential(layers)
  function = tf.function(lambda x: model(x))
  graph = function.get_concrete_function(tf.TensorSpec([8, 12, 12, 3])).graph
  options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
  options['output'] = 'none'
  profile = tf.compat.v1.profiler.profile(graph, options=options)
  ours = flops.of_step(graph.as_graph_def(add_shapes=True))
  assert ours == profile.total_float_ops


@pytest.mark.parametrize(
  ('name', 'half', 'peak'),
  [
    ('NVIDIA H100 80GB HBM3', True, 989e12),
    ('NVIDIA H100 PCIe', True, 756e12),
    ('NVIDIA A100-SXM4-40GB', False, 156e12),
    ('Tesla T4', False, 8.1e12),
    ('NVIDIA L40S', True, 362e12),
    ('NVIDIA L40', True, None),
    ('NVIDIA A100 80GB PCIe', True, 312e12),
    ('Something new', True, None),
  ],
)
def test_the_peak_is_that_of_the_device(monkeypatch, name, half, peak):
  """No such device is here; what TensorFlow would call it is."""
  monkeypatch.setattr(tf.config, 'get_visible_devices', lambda _: ['gpu'])
  monkeypatch.setattr(
    tf.config.experimental,
    'get_device_details',
    lambda _: {'device_name': name},
  )
  assert flops.peak(half=half) == peak


def test_a_cpu_has_no_known_peak():
  _, report = trained(
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), rows(4)
  )
  assert 'utilization' not in report.timing

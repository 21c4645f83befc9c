"""What a compiled loop says of itself: FLOPs, memory, and another trace."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import cases
import tftrain
from tftrain import errors
from tftrain.platform import process_memory
from tftrain.train import compiled_loop
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


# Floating-point operations.


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


@pytest.mark.parametrize(
  'options',
  [
    {'update': tftrain.Update(accumulate=4)},
    {'update': tftrain.Update(jit=True)},
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


# Memory.


@pytest.mark.slow
def test_memory_is_what_the_kernel_says():
  before = process_memory.resident()
  kept = np.ones([64, 2**20])  # 512 MiB, each page touched
  grown = process_memory.resident() - before
  assert kept.nbytes * 0.95 < grown < kept.nbytes * 1.2
  assert process_memory.most_resident() >= process_memory.resident() * 0.99


def grow(growth, reports, megabytes, keep=lambda: None, traces=lambda i: 1):
  for index in range(reports):
    keep()
    growth.look(10 * index, 1000.0 + megabytes * index, traces(index))


def test_memory_that_stays_is_not_spoken_of(caplog):
  growth = process_memory.Growth()
  for step in range(100):
    growth.look(step, 1000.0 + 300 * (step % 7), 1)
  grow(process_memory.Growth(), 100, 1.0)  # 100 MB in all
  assert caplog.records == []


def test_tensors_that_are_kept_are_named(caplog):
  kept = []

  def keep():
    kept.append(tf.zeros([50 * 250_000]))

  grow(process_memory.Growth(), 11, 50.0, keep)
  (record,) = caplog.records
  text = record.getMessage()
  assert 'grown at each of the last 10 reports, by 450 MB to 1500 MB' in text
  assert 'Python holds' in text and 'more tensors and arrays' in text


def test_growth_elsewhere_is_not_blamed_on_python(caplog):
  grow(process_memory.Growth(), 30, 50.0)
  (record,) = caplog.records
  assert 'no tensor that Python holds' in record.getMessage()


def test_another_compilation_is_the_likely_cause(caplog):
  grow(process_memory.Growth(), 30, 50.0, traces=lambda i: 1 + i // 5)
  (record,) = caplog.records
  assert 'compiled again meanwhile' in record.getMessage()


# Another trace.


def loop(max_traces=None):
  return compiled_loop.Loop(lambda iterator, n: n + 0, 'the loop', max_traces)


def call(loop, dataset):
  return loop(iter(dataset), tf.constant(1, tf.int64))


def batches(shape=(8, 3), dtype=tf.float32, key='x'):
  return tf.data.Dataset.from_tensors(
    ({key: tf.zeros(shape, dtype)}, tf.zeros(shape[:1], tf.int64))
  )


def test_the_same_data_need_no_other_trace(caplog):
  one = loop(max_traces=1)
  for _ in range(3):
    call(one, batches())
  assert one.traces == 1
  assert caplog.records == []


@pytest.mark.parametrize(
  ('then', 'text'),
  [
    (
      batches((7, 3)),
      "batch[0]['x'] was float32[8, 3] and is float32[7, 3]; make all batches "
      'of one shape (drop_remainder=True, padding), or say which sizes vary in '
      'the element_spec of the data',
    ),
    (
      batches(dtype=tf.float64),
      "batch[0]['x'] was float32[8, 3] and is float64[8, 3]; cast it where the "
      'data is made (tf.cast)',
    ),
    (
      batches(key='y'),
      "a batch has batch[0]['y'] and has no batch[0]['x'] any more; give each "
      'batch the same structure',
    ),
  ],
  ids=['shape', 'dtype', 'structure'],
)
def test_another_trace_is_explained(caplog, then, text):
  one = loop()
  call(one, batches())
  call(one, then)
  assert one.traces == 2
  (record,) = (r for r in caplog.records if r.name == 'absl')
  assert record.levelno == logging.WARNING
  assert record.getMessage() == (
    f'the loop is compiled again, 2 times by now, as {text}.'
  )
  call(one, batches())
  assert len([r for r in caplog.records if r.name == 'absl']) == 1


def test_too_many_traces_are_an_error_before_the_next():
  one = loop(max_traces=2)
  call(one, batches())
  call(one, batches((7, 3)))
  with pytest.raises(errors.InputError, match=r'\(max_traces is 2\)'):
    call(one, batches((6, 3)))
  assert one.traces == 2


@pytest.mark.parametrize('max_traces', [None, 1])
def test_a_run_whose_data_change_says_so(tmp_path, caplog, max_traces):
  """The second life in one process gets other batches than the first."""
  rows = [8]

  def data():
    x, y = cases.arrays(96)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(*rows, True)

  recipe = tftrain.Experiment(
    cases.supervised,
    lambda: tftrain.data.DatasetPipeline(data, resume='restart'),
    steps=4,
    checkpoint_every=2,
    export=False,
    max_traces=max_traces,
    strategy='one_device',
  )
  run = recipe.prepare(tmp_path)
  run.last_step = 2
  run.train()
  assert run.trainer.traces == 1
  run.last_step = 4
  rows[0] = 6
  if max_traces:
    with pytest.raises(errors.InputError, match='max_traces is 1'):
      run.train()
    return
  run.train()
  assert run.trainer.traces == 2
  assert [
    record
    for record in caplog.records
    if 'batch[0] was float32[8, 6] and is float32[6, 6]' in record.getMessage()
  ]


@pytest.mark.parametrize('value', [0, -1, 1.5, 'many'])
def test_max_traces_is_a_number(value):
  with pytest.raises(errors.ConfigError, match='max_traces'):
    tftrain.Experiment(
      cases.supervised, lambda: None, steps=1, max_traces=value
    )

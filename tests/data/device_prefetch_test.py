"""Prefetching to a device: batches are copied ahead of the step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.data import device_prefetch

_STEPS = 13


@pytest.fixture
def copied(monkeypatch):
  """Where batches of a run without strategy are copied to; those seen."""
  seen = []

  def note(dataset, device, iterator=device_prefetch.iterator):
    made = iterator(dataset, device)
    seen.append(made)
    return made

  devices = tf.config.list_logical_devices('CPU')
  monkeypatch.setattr(
    tf.config, 'list_logical_devices', lambda kind=None: devices[1:2]
  )
  monkeypatch.setattr(device_prefetch, 'iterator', note)
  return seen


def data(kind):
  x, y = small_tasks.arrays()
  if kind == 'arrays':  # too large to be gathered in the graph
    wide = np.repeat(x, 600, 1)[:, :6], y
    pipeline = tftrain.Arrays((*wide, np.zeros([len(x), 3000], np.float32)), 8)
    return tftrain.data.FirstBatches(pipeline, _STEPS)
  keep = (lambda pair: pair[0][0] > -9) if kind == 'filtered' else None
  return tftrain.data.Examples(
    tftrain.data.InMemory((x, y)), 8, epochs=2, shuffle=8, filter=keep,
    map=lambda pair, seed: (
      pair[0] + tf.random.stateless_normal([6], seed), pair[1]
    ),
  )  # fmt: skip


class Wide(tftrain.SupervisedTask):
  """Takes no notice of what else there is."""

  def loss(self, batch, training):
    return super().loss(batch[:2], training)


def trainer(kind):
  keras.utils.set_random_seed(0)
  task = Wide(
    small_tasks.model(dropout=0.2),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(0.01),
  )
  return tftrain.Trainer(task, data(kind), log_every=3, steps_per_loop=4)


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind', ['examples', pytest.param('arrays', marks=pytest.mark.slow)]
)
def test_copied_batches_change_nothing_and_stop_and_resume_anywhere(
  kind, request
):
  plain = trainer(kind)
  expected = [report.scalars for report in plain.steps(99)]
  state = small_tasks.state_of(plain)
  seen = request.getfixturevalue('copied')
  run = trainer(kind)
  found, kept = [], None
  for report in run.steps(6):
    found.append(report.scalars)
  kept = small_tasks.state_of(run)
  assert len(seen) == 1
  assert seen[0].element_spec == run.pipeline.element_spec
  assert next(seen[0])[0].device.endswith('CPU:1')
  resumed = trainer(kind)
  resumed.write_state(kept)
  found += [report.scalars for report in resumed.steps(99)]
  assert resumed.step == plain.step  # at the end of the data
  assert found == expected
  small_tasks.assert_same_bits(small_tasks.state_of(resumed), state)


@pytest.mark.usefixtures('copied')
def test_what_the_host_has_to_read_stays_there(monkeypatch):
  assert device_prefetch.device_for(data('filtered')) is None
  x, y = small_tasks.arrays()
  kept = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(8)
  assert (
    device_prefetch.device_for(tftrain.data.as_pipeline(kept, training=True))
    is None
  )
  texts = tftrain.data.Examples(
    tftrain.data.InMemory({'t': np.array(['a', 'b'])}), 2
  )
  assert device_prefetch.device_for(texts) is None
  plain = data('examples')
  assert device_prefetch.device_for(plain).endswith('CPU:1')
  with tf.distribute.OneDeviceStrategy('CPU:0').scope():
    assert device_prefetch.device_for(plain) is None
  monkeypatch.setenv('TFTRAIN_DEVICE_PREFETCH', '0')
  assert device_prefetch.device_for(plain) is None

"""Iterator states: a stopped run goes on with a dataset of the user's own."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.support import resumable_runs
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.checkpoint import format


def shuffled():
  dataset = tf.data.Dataset.from_tensor_slices(
    (resumable_runs.X, resumable_runs.Y)
  )
  return dataset.shuffle(20).map(lambda x, y: (2 * x, y)).batch(8)


def sampled():
  """Never the same epoch, and never an end."""
  parts = [
    tf.data.Dataset.from_tensor_slices((resumable_runs.X + i, resumable_runs.Y))
    .shuffle(9)
    .repeat()
    for i in range(2)
  ]
  return tf.data.Dataset.sample_from_datasets(parts).batch(8)


def selected():
  return tftrain.data.Examples(
    tftrain.data.InMemory({'x': resumable_runs.X, 'y': resumable_runs.Y}),
    8,
    filter=lambda example: example['x'][0] > 0,
    select=('x', 'y'),
  )


def end_of(model_dir, step):
  path = format.checkpoint_path(model_dir / 'checkpoints', step)
  _, state = format.read_checkpoint(path)
  # Two iterators at the same place may be written differently.
  state.pop('trainer/iterator', None)
  return state


@pytest.mark.parametrize(
  'data',
  [
    shuffled,
    *(pytest.param(d, marks=pytest.mark.slow) for d in (sampled, selected)),
  ],
)
def test_a_stopped_run_goes_on_to_the_bit(data, tmp_path):
  resumable_runs.experiment(data, 30).train(tmp_path / 'whole')
  for steps in (5, 17, 30):  # an epoch has nine steps
    resumable_runs.experiment(data, steps).train(tmp_path / 'parts')
  whole, parts = end_of(tmp_path / 'whole', 30), end_of(tmp_path / 'parts', 30)
  assert len(whole) > 10
  small_tasks.assert_same_bits(whole, parts)


def noisy():
  dataset = tf.data.Dataset.from_tensor_slices(
    (resumable_runs.X, resumable_runs.Y)
  )
  return dataset.map(lambda x, y: (x + tf.random.normal([6]), y)).batch(8)


def different_each_time():
  begin = next(_COUNT)
  return tf.data.Dataset.from_tensor_slices(
    (resumable_runs.X + begin, resumable_runs.Y)
  ).batch(8)


_COUNT = itertools.count()


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (noisy, 'RandomStandardNormal is stateful'),
    (different_each_time, 'made twice, it yields different batches'),
    (
      lambda: tftrain.data.DatasetPipeline(shuffled()),
      'made twice, it yields different batches',
    ),
  ],
)
def test_a_dataset_that_cannot_go_on_is_refused(data, reason, tmp_path):
  with pytest.raises(errors.InputError) as caught:
    resumable_runs.experiment(data, 5).prepare(tmp_path)
  assert str(caught.value) == (
    f'a stopped run could not go on with this dataset: {reason}. Seed its '
    "shuffles, or give tftrain.data.DatasetPipeline(data, resume='skip') or "
    "'restart'"
  )
  assert not list(tmp_path.iterdir())


def test_skip_makes_the_batches_again_and_restart_begins_anew():
  plain = tf.data.Dataset.range(40).batch(4)
  for resume, first in (('skip', 12), ('restart', 0)):
    batches = tftrain.data.DatasetPipeline(plain, resume=resume)
    assert next(iter(batches.dataset(0, start_step=3)))[0].numpy() == first
    batches.check_resumable()
  with pytest.raises(errors.ConfigError, match="'state', 'skip' or 'restart'"):
    tftrain.data.DatasetPipeline(plain, resume='start')


def test_a_list_goes_on_by_skipping():
  batches = tftrain.data.DatasetPipeline(
    [
      (resumable_runs.X[:8], resumable_runs.Y[:8]),
      (resumable_runs.X[8:16], resumable_runs.Y[8:16]),
    ]
  )
  batches.check_resumable()
  again = next(iter(batches.dataset(0, start_step=3)))
  np.testing.assert_array_equal(again[0], resumable_runs.X[8:16])


def test_data_that_ends_before_the_run_is_told_of_before_step_1(
  tmp_path, caplog
):
  def data():
    return tftrain.Arrays((resumable_runs.X, resumable_runs.Y), 8, epochs=2)

  run = resumable_runs.experiment(data, 1000).prepare(tmp_path)
  assert run.last_step == 17
  assert (
    'The training data ends at step 17 of 1000 (67 examples)' in caplog.text
  )


@pytest.mark.parametrize('jit', ['off', 'block'])
def test_a_file_that_is_gone_for_a_while_costs_no_batch(jit, tmp_path):
  """An error within a block leaves the data where no checkpoint can hold it."""
  x, y = small_tasks.arrays(200)
  files = [tmp_path / f'{number:02}' for number in range(25)]
  for path, rows in zip(files, x.reshape(25, 8, 6), strict=True):
    path.write_bytes(rows.tobytes())

  def data():
    def read(name, labels):
      content = tf.io.decode_raw(tf.io.read_file(name), tf.float32)
      return tf.ensure_shape(tf.reshape(content, [8, 6]), [8, 6]), labels

    names = [str(path) for path in files]
    return tf.data.Dataset.from_tensor_slices((names, y.reshape(25, 8))).map(
      read, num_parallel_calls=2
    )

  def prepared(name):
    return tftrain.Experiment(
      small_tasks.supervised,
      data,
      steps=30,
      checkpoint_every=10,
      export=False,
      update=tftrain.Update(jit=jit),
    ).prepare(tmp_path / name, quiet=True)

  unbroken = prepared('unbroken')
  unbroken.train()
  gone = files[17].rename(tmp_path / 'gone')
  with pytest.raises(errors.InputError):
    prepared('broken').train()
  gone.rename(files[17])
  resumed = prepared('broken')
  assert resumed.checkpointer.steps() == [10]
  resumed.train()
  one, other = (small_tasks.state_of(r.trainer) for r in (unbroken, resumed))
  del one['trainer/iterator'], other['trainer/iterator']  # where, not how
  small_tasks.assert_same_bits(one, other)

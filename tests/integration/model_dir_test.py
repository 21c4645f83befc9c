"""The model_dir of a finished run: curves, metrics and export."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import event_files
from tests.support import small_tasks
import tftrain


@pytest.fixture(scope='module', params=['one_device', 'mirrored'])
def run_dir(request, tmp_path_factory):
  """A finished run."""
  model_dir = tmp_path_factory.mktemp(request.param)
  keras.utils.set_random_seed(0)
  run = tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    {
      'test': lambda: tftrain.Arrays(
        small_tasks.arrays(seed=1), 8, training=False
      ),
      'ood': lambda: tftrain.Arrays(
        small_tasks.arrays(seed=2), 8, training=False
      ),
    },
    steps=60,
    log_every=20,
    eval_every='2 epochs',
    export=tftrain.actions.Export(fresh=False),
    strategy=request.param,
  ).prepare(model_dir)
  run.train({'config.gin': 'Experiment.steps = 60\n'})
  return run, model_dir


def scalars(directory, tag):
  return {
    event.step: float(tf.make_ndarray(event.tensor_proto))
    for event in event_files.events(directory).Tensors(tag)
  }


@pytest.mark.slow
def test_train_and_eval_curves_share_their_tags(run_dir):
  _, model_dir = run_dir
  train = scalars(model_dir / 'train', 'loss')
  test = scalars(model_dir / 'eval' / 'test', 'loss')
  assert list(train) == [20, 40, 60]
  assert list(test) == list(scalars(model_dir / 'eval' / 'ood', 'loss'))
  assert list(test) == [17, 34, 51, 60]  # two epochs of 67 in batches of 8
  tags = event_files.events(model_dir / 'train').Tags()['tensors']
  assert {
    'loss',
    'accuracy',
    'learning_rate',
    'gradient_norm',
    'time/steps_per_second',
    'time/examples_per_second',
    'time/input_wait',
    'config.gin',
  } <= set(tags)


def test_metrics_jsonl_holds_the_same_values(run_dir):
  _, model_dir = run_dir
  train = scalars(model_dir / 'train', 'loss')
  lines = (model_dir / 'metrics.jsonl').read_text().splitlines()
  values = [json.loads(line) for line in lines]
  ours = {v['step']: v['loss'] for v in values if v['source'] == 'train'}
  assert ours == pytest.approx(train)
  assert not any('per_second' in line or 'seconds' in line for line in lines)
  timing = (model_dir / 'timing.jsonl').read_text().splitlines()
  assert len(timing) == len(lines)


def test_the_export_serves_any_batch_size_without_our_code(run_dir):
  run, model_dir = run_dir
  served = tf.saved_model.load(str(model_dir / 'export' / '60'))
  signature = served.signatures['serving_default']
  for rows in (1, 5):
    x, _ = small_tasks.arrays(rows)
    np.testing.assert_array_equal(
      signature(inputs=x)['outputs'], run.trainer.task.model(x)
    )
  names = [path.name for path in (model_dir / 'export').iterdir()]
  assert names == ['60']

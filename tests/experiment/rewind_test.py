"""Rewind: goes back before bad steps, and passes over them."""

import json

import keras
import numpy as np
import pytest

from tests.support import bad_batches
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.checkpoint import format


def experiment(**options):
  options = {'checkpoint_every': 10, 'log_every': 5, **options}
  return tftrain.Experiment(
    lambda: small_tasks.supervised(dropout=0.2),
    lambda: bad_batches.one_bad(33),
    steps=60,
    steps_per_loop=7,
    export=False,
    rewind=tftrain.experiment.Rewind(skip_batches=5),
    **options,
  )


def lines(model_dir):
  text = (model_dir / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def final(model_dir):
  directory = model_dir / 'checkpoints'
  path = format.checkpoint_path(directory, 60)
  return format.read_checkpoint(path)


def test_a_rewind_passes_over_the_steps_before_and_at_the_bad_one(tmp_path):
  experiment().train(tmp_path / 'run')
  manifest, state = final(tmp_path / 'run')
  assert manifest['facts']['passed_over'] == [[29, 33]]
  assert state['trainer/updates'] == 55
  steps = [line['step'] for line in lines(tmp_path / 'run')]
  assert steps == list(range(5, 61, 5))

  told = experiment().prepare(tmp_path / 'told')
  told.trainer.skipped_steps.add(29, 33)
  told.train()
  small_tasks.assert_same_bits(state, final(tmp_path / 'told')[1])
  assert lines(tmp_path / 'run') == lines(tmp_path / 'told')


@pytest.mark.slow
@pytest.mark.parametrize('every', [3, 28, 50])
def test_it_does_not_matter_what_was_gone_back_to(every, tmp_path):
  experiment().train(tmp_path / 'run')
  experiment(checkpoint_every=every).train(tmp_path / 'other')
  small_tasks.assert_same_bits(
    final(tmp_path / 'run')[1], final(tmp_path / 'other')[1]
  )
  assert lines(tmp_path / 'run') == lines(tmp_path / 'other')


@pytest.mark.slow
@pytest.mark.parametrize('stop_at', [25, 31, 45])
def test_a_rewound_run_that_is_stopped_ends_alike(stop_at, tmp_path):
  experiment().train(tmp_path / 'run')
  part = experiment().prepare(tmp_path / 'parts')

  def stop(report):
    if report.step >= stop_at:
      part.trainer.request_stop()

  part._actions = (tftrain.Every(1, stop), *part._actions)
  part.train()
  experiment().train(tmp_path / 'parts')
  small_tasks.assert_same_bits(
    final(tmp_path / 'run')[1], final(tmp_path / 'parts')[1]
  )
  assert lines(tmp_path / 'run') == lines(tmp_path / 'parts')


def test_it_goes_back_only_so_often(tmp_path):
  def always_bad():
    batches = bad_batches.one_bad(33)
    for step in range(34, 60):
      batches[step - 1] = batches[32]
    return batches

  recipe = tftrain.Experiment(
    small_tasks.supervised, always_bad, steps=60, export=False,
    rewind=tftrain.experiment.Rewind(skip_batches=5, max_rewinds=2),
  )  # fmt: skip
  with pytest.raises(errors.NonFiniteError, match='2 times already') as info:
    recipe.train(tmp_path)
  assert 'Rewind.max_rewinds' in str(info.value) and '\n' not in str(info.value)


def test_a_spike_makes_a_run_go_back(tmp_path):
  def spiky():
    batches = bad_batches.in_order(small_tasks.arrays())
    x, y = batches[32]
    batches[32] = (x * 1000.0, y)
    return batches

  recipe = tftrain.Experiment(
    lambda: small_tasks.supervised(keras.optimizers.SGD(0.01)),
    spiky,
    steps=60,
    log_every=5,
    export=False,
    rewind=tftrain.experiment.Rewind(skip_batches=5),
    actions=[tftrain.actions.LossSpike(3.0, reports=3)],
  )
  recipe.train(tmp_path)
  manifest, state = final(tmp_path)
  assert manifest['facts']['passed_over'] == [[31, 35]]
  assert all(
    np.isfinite(v).all() for v in state.values() if v.dtype == np.float32
  )
  assert [line['step'] for line in lines(tmp_path)] == list(range(5, 61, 5))


def test_settings_that_make_no_sense():
  for make in (
    lambda: tftrain.experiment.Rewind(skip_batches=0),
    lambda: tftrain.experiment.Rewind(max_rewinds=0),
    lambda: tftrain.actions.LossSpike(1.0),
    lambda: tftrain.actions.LossSpike(reports=0),
    lambda: tftrain.Update(max_skips=-1),
  ):
    with pytest.raises(errors.ConfigError):
      make()

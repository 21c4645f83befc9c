"""The HPARAMS tab: values and final metrics of each run, without secrets."""

import keras
import pytest

from tests.support import shown_runs
from tests.support import small_tasks
from tests.support import tensorboard_reader
import tftrain
from tftrain.experiment import _hparams
from tftrain.platform import literals


def test_the_hparams_tab_holds_no_secrets(tmp_path):
  run = tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    steps=2,
    export=False,
  ).prepare(tmp_path)
  run.train(bindings=["load.api_key = 'abc123'"])
  written = b''.join(p.read_bytes() for p in tmp_path.rglob('events.*'))
  assert b'api_key' in written and b'abc123' not in written


def test_the_hparams_tab_shows_values_and_final_metrics(tmp_path):
  results = {}
  for seed in (1, 2):
    run = tftrain.Experiment(
      small_tasks.supervised,
      lambda: tftrain.Arrays(small_tasks.arrays(), 8),
      lambda: tftrain.Arrays(small_tasks.arrays(seed=1), 8, training=False),
      steps=4,
      export=False,
      seed=seed,
    ).prepare(tmp_path / f'run_{seed}')
    bindings = [f'Experiment.seed = {seed}', "cases.kind = 'x'\nA.b = @c"]
    results[seed] = run.train(bindings=bindings).scalars
  rows = {
    row[0]['seed']: row for row in tensorboard_reader.hparams_rows(tmp_path)
  }
  assert list(rows) == [1, 2]
  for seed, (given, metrics) in rows.items():
    assert given == {
      'seed': seed,
      'steps': 4,
      'strategy': 'auto',
      'replicas': 1,
      'optimizer': 'Adam',
      'learning_rate': 0.01,
      'Experiment.seed': seed,
      'cases.kind': 'x',
      'A.b': '@c',
    }
    for name in ('eval/test/accuracy', 'eval/test/loss', 'train/loss'):
      assert metrics[name] == pytest.approx(results[seed][name], rel=1e-6)


@pytest.mark.slow
def test_one_run_alone_has_its_row_and_a_resumed_one_has_one(tmp_path):
  for steps in (4, 8):
    shown_runs.train(tmp_path / 'run', steps=steps)
  ((given, metrics),) = tensorboard_reader.hparams_rows(tmp_path)
  assert given['steps'] == 4  # as it was begun
  _, _, last = shown_runs.written(tmp_path / 'run' / 'eval' / 'test', 'loss')
  assert metrics['eval/test/loss'] == pytest.approx(last)
  # TensorBoard looks for metrics below a row's directory, and not in `.`.
  assert tensorboard_reader.hparams_rows(tmp_path / 'run') == [(given, {})]


def test_a_schedule_and_several_optimizers_are_no_plain_rates():
  task = small_tasks.supervised()
  task.optimizer = keras.optimizers.SGD(
    keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
  )
  assert _hparams.of_run(task, {'none': None}, [], '').values == {
    'optimizer': 'SGD'
  }
  task.other_optimizer = keras.optimizers.Adam(3e-4)
  assert _hparams.of_run(task, {}, [], '').values == {
    'optimizer': 'SGD',
    'other_optimizer': 'Adam',
    'other_optimizer/learning_rate': 0.0003,
  }


@pytest.mark.parametrize(
  ('binding', 'found'),
  [
    ('STEPS = 500', {'STEPS': 500}),
    ('train/f.x = -1.5e-3', {'train/f.x': -0.0015}),
    ('f.x = True', {'f.x': True}),
    ("f.x = 'a = b'", {'f.x': 'a = b'}),
    ('f.x = [1, 2]', {'f.x': '[1, 2]'}),
    ('f.x = None', {'f.x': 'None'}),
    ('f.x = %MACRO', {'f.x': '%MACRO'}),
    ('import os', {}),
  ],
)
def test_bindings_become_values(binding, found):
  assert literals.assigned([binding]) == found

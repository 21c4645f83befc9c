"""Limited data: the first batches, repeated or once."""

import numpy as np
import pytest
import tensorflow as tf

from tests.support import recorded_runs
from tests.support import small_tasks
import tftrain


def same_batches(one, other):
  for a, b in zip(one, other, strict=True):
    for leaf, expected in zip(a, b, strict=True):
      np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize(
  'data',
  [recorded_runs.train_data, recorded_runs.cursor_data, recorded_runs.dataset],
)
def test_the_first_batches_come_again_from_any_step(data):
  whole = tftrain.data.as_pipeline(data, training=True)
  few = tftrain.data.FirstBatches(whole, 3, repeat=True)
  first = whole.peek(3)
  expected = [first[step % 3] for step in range(8)]
  same_batches(few.peek(8), expected)
  for start in (1, 5):
    found = list(few.dataset(0, start).take(3).as_numpy_iterator())
    same_batches(found, expected[start : start + 3])
  assert few.repeats and few.num_steps is None


def test_batches_within_the_graph_repeat_too():
  few = tftrain.data.FirstBatches(recorded_runs.train_data(), 2, repeat=True)
  found = [few.batch(0, tf.constant(step, tf.int64)) for step in range(5)]
  first = recorded_runs.train_data().peek(2)
  same_batches(found, [first[step % 2] for step in range(5)])


def test_data_shorter_than_asked_for_repeat_what_there_is():
  parts = [(np.full([2, 1], i, 'float32'),) for i in range(2)]
  short = tftrain.data.DatasetPipeline(parts, repeat=False)
  few = tftrain.data.FirstBatches(short, 5, repeat=True)
  found = [int(b[0][0, 0]) for b in few.dataset(0, 5).take(4)]
  assert found == [1, 0, 1, 0]


@pytest.mark.slow
def test_a_limited_evaluation_is_that_of_its_first_batches(tmp_path):
  x, y = small_tasks.arrays(seed=1)

  def some():
    return tftrain.Arrays((x[:16], y[:16]), 8, training=False)

  limited = recorded_runs.experiment(limit_eval_batches=2, steps=2).train(
    tmp_path / 'a'
  )
  expected = recorded_runs.experiment(eval_data=some, steps=2).train(
    tmp_path / 'b'
  )
  name = 'eval/test/loss'
  assert limited.scalars[name] == expected.scalars[name]
  whole = recorded_runs.experiment(steps=2).train(tmp_path / 'c')
  assert whole.scalars[name] != expected.scalars[name]


def test_data_without_end_can_be_evaluated_on_when_limited(tmp_path):
  run = recorded_runs.experiment(
    eval_data=recorded_runs.train_data, limit_eval_batches=2, steps=1
  )
  assert 'eval/test/loss' in run.train(tmp_path / 'run').scalars
  made = tftrain.data.limited(recorded_runs.train_data(), 3, 'eval')
  assert made.num_steps == 3 and made.num_examples == 24


@pytest.mark.slow
def test_the_same_few_batches_are_learned_by_heart(tmp_path, caplog):
  run = recorded_runs.experiment(
    overfit_batches=1, steps=120, log_every=20, eval_every=120
  )
  result = run.train(tmp_path / 'run')
  assert result.scalars['train/accuracy'] == 1.0
  assert 'train: the first 1 batches, again and again' in caplog.text
  with pytest.raises(tftrain.Error, match='data: checkpoint'):
    recorded_runs.experiment(overfit_batches=2, steps=130).train(
      tmp_path / 'run'
    )


@pytest.mark.slow
def test_batches_below_one_and_another_value_are_refused(commands, tmp_path):
  path = tmp_path / 'recipe.gin'
  path.write_text(recorded_runs.GIN)
  asked = [f'--gin_file={path}', f'--model_dir={tmp_path / "run"}']
  for flag in ('overfit_batches', 'limit_eval_batches'):
    ended = commands.run(*asked, f'--{flag}=0')
    assert ended.code == 2
    assert f'Experiment.{flag} must be a positive number, got 0' in ended.error
  assert not (tmp_path / 'run').exists()
  asked += ['--limit_eval_batches=1', '--overfit_batches=1']
  ended = commands.run(*asked)
  assert ended.code == 0 and 'eval/small: the first 1 batches' in ended.stderr
  other = commands.run(*asked, '--limit_eval_batches=2')
  assert other.code == 2
  assert 'Experiment.limit_eval_batches: 1 -> 2' in other.error


def test_prediction_reads_files_whole_where_evaluation_is_limited(tmp_path):
  x, y = small_tasks.arrays(20)
  np.savez(tmp_path / 'x.npz', x=x, y=y)
  like = tftrain.data.Examples(
    tftrain.data.InMemory({'x': x, 'y': y}),
    8,
    training=False,
    select=('x', 'y'),
  )
  few = tftrain.data.FirstBatches(like, 1)
  found = tftrain.data.open_input(tmp_path / 'x.npz', few)
  assert found.num_examples == 20 and len(found.peek(9)) == 3

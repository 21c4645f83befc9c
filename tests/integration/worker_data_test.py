"""Data on several workers: shared, uneven, different, broken."""

import pytest

from tests.support import worker_processes

_GIN = """
import tests.support.recipes

Experiment.task = @recipes.make_normalized_task
Experiment.train_data = @recipes.examples
Experiment.eval_data = @eval/recipes.examples
eval/recipes.examples.training = False
Experiment.steps = 30
Experiment.log_every = 10
Experiment.eval_every = 15
Experiment.checkpoint_every = 10
Experiment.export = False
"""


@pytest.mark.slow
@pytest.mark.parametrize('filtered', [False, True])
def test_two_workers_that_share_the_data_are_two_devices(
  commands, tmp_path, monkeypatch, filtered
):
  monkeypatch.setattr(worker_processes, 'GIN', _GIN)
  binding = f'--gin.recipes.examples.filtered={filtered}'
  (tmp_path / 'one').mkdir()
  ended = worker_processes.alone(
    commands, tmp_path / 'one', '--local_devices=2', '--strategy=mirrored',
    binding,
  )  # fmt: skip
  assert ended.code == 0, ended.stderr
  (tmp_path / 'two').mkdir()
  stop = '--gin.Experiment.steps=20'
  for arguments in ([binding, stop], [binding]):  # it also goes on at step 20
    team = worker_processes.Team(
      commands, tmp_path / 'two', '--verbosity=0', *arguments
    )
    both = team.wait()
    assert [e.code for e in both] == [0, 0], both[0].stderr + both[1].stderr
    for number, e in enumerate(both):
      said = f'makes the rows of replicas {number} to {number} of 2'
      assert (said in e.stderr) == (not filtered)
  found = worker_processes.lines(tmp_path / 'two')
  expected = worker_processes.lines(tmp_path / 'one')
  for source in ('train', 'eval/test'):
    one, two = (
      {line['step']: line for line in lines if line['source'] == source}
      for lines in (expected, found)
    )
    assert set(one) <= set(two)
    for step, line in one.items():
      for name, value in line.items():
        if name != 'source':
          assert two[step][name] == pytest.approx(value, abs=1e-6, rel=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize('eagerly', [False, True])
@pytest.mark.parametrize('batches', ['(25, 33)', '(33, 25)'])
def test_data_that_end_for_one_end_for_all(
  commands, tmp_path, batches, eagerly
):
  data = worker_processes.bind(
    'Experiment.train_data = @recipes.uneven_data',
    f'recipes.uneven_data.batches = {batches}',
  )
  flags = ['--run_eagerly'] if eagerly else []
  ended = worker_processes.Team(commands, tmp_path, *data, *flags).wait()
  worker_processes.assert_ended(ended, 0, 0)
  assert 'Done: step 25' in ended[0].stdout
  assert [l['step'] for l in worker_processes.lines(tmp_path)][-1] == 25
  assert worker_processes.saved_steps(tmp_path) == [20, 25]


@pytest.mark.slow
def test_an_evaluation_of_uneven_data_ends_for_all(commands, tmp_path):
  data = worker_processes.bind(
    'Experiment.eval_data = @recipes.uneven_data',
    'recipes.uneven_data.batches = (4, 6)',
  )
  ended = worker_processes.Team(commands, tmp_path, *data).wait()
  worker_processes.assert_ended(ended, 0, 0)


@pytest.mark.parametrize(
  ('what', 'training'),
  [('its data', True), ("the data of evaluation 'test'", False)],
)
def test_other_data_are_refused(commands, tmp_path, what, training):
  kind = 'train_data' if training else 'eval_data'
  data = worker_processes.bind(
    f'Experiment.{kind} = @recipes.other_data',
    f'recipes.other_data.training = {training}',
    'recipes.other_data.examples = (67, 66)',
  )
  ended = worker_processes.Team(commands, tmp_path, *data).wait()
  worker_processes.assert_ended(ended, 2, 2)
  for e in ended:
    assert e.error.startswith('worker 1 (127.0.0.1:')
    assert f'differs from worker 0 in {what}' in e.error
  assert not (tmp_path / 'run').exists()


def test_data_made_before_the_strategy_are_refused(commands, tmp_path):
  data = worker_processes.bind('Experiment.eval_data = @recipes.uneven_data()')
  ended = worker_processes.Team(commands, tmp_path, *data).wait()
  worker_processes.assert_ended(ended, 2, 2)
  for e in ended:
    assert 'comes too late: TensorFlow has started' in e.error
    assert 'eval_data = @name, without parentheses' in e.error


@pytest.mark.slow
def test_data_that_break_on_one_worker_end_all(commands, tmp_path):
  bindings = worker_processes.bind(
    'Experiment.train_data = @recipes.breaking_data'
  )
  ended = worker_processes.Team(commands, tmp_path, *bindings).wait()
  worker_processes.assert_ended(ended, 1, 2)
  assert 'worker 1 (127.0.0.1:' in ended[0].error
  assert 'the disk is gone' in ended[1].error
